"""Long answers give way to others, and are the same JSON."""

from __future__ import annotations

import asyncio
import json

from glm4.server.long_answers import STEP_NBYTES, long_answer


def test_a_long_answer_lets_others_run_and_is_complete() -> None:
    content = {"é": [], "list": [{"text": "中" * 1000, "n": n} for n in range(1000)], "x": {"a": None}, "y": "\u2028"}
    turns = 0

    async def made() -> bytes:
        nonlocal turns
        answer = asyncio.ensure_future(long_answer(content, {"X-Test": "1"}))
        while not answer.done():
            turns += 1
            await asyncio.sleep(0)
        response = answer.result()
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-test"] == "1"
        return bytes(response.body)

    body = asyncio.run(made())
    assert json.loads(body) == content
    assert body == json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    assert turns >= len(body) // (STEP_NBYTES + 4000)
