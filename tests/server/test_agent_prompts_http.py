"""Saved system prompts over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from test_agent_http import check, followed, running

KEYS = ("first-secret-key", "second-secret-key")
PROMPTS = "/v1/agent/prompts"


def test_a_prompt_is_saved_changed_used_and_deleted(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\nYes."

    folder = tmp_path / "saved"
    with running(tmp_path, answer, sessions=folder) as live, live.client() as client:
        assert check("AgentPrompts", client.get(PROMPTS).json()) == {"prompts": []}
        made = check("AgentPrompt", client.post(PROMPTS, json={"name": "Brief", "text": "Be brief."}).json())
        changed = check("AgentPrompt", client.put(f"{PROMPTS}/{made['id']}", json={"text": "Be very brief."}).json())
        assert changed == {**made, "text": "Be very brief.", "updated": changed["updated"]}
        followed(client, "/v1/agent/chat", {"content": "x", "system": changed["text"]})
        assert "Be very brief." in seen[0]
    with running(tmp_path, answer, sessions=folder) as live, live.client() as client:
        assert client.get(PROMPTS).json() == {"prompts": [changed]}
        assert check("AgentDone", client.delete(f"{PROMPTS}/{made['id']}").json()) == {"done": True}
        assert client.delete(f"{PROMPTS}/{made['id']}").status_code == 404
        (talk,) = client.get("/v1/agent/conversations").json()["conversations"]
        assert talk["system"] == "Be very brief."


def test_prompts_belong_to_a_key(tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nx", api_keys=KEYS) as live:
        mine, yours = (
            httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in KEYS
        )
        with mine, yours:
            made = mine.post(PROMPTS, json={"name": "n", "text": "t"}).json()
            assert yours.get(PROMPTS).json() == {"prompts": []}
            for method, body in (("PUT", {"text": "x"}), ("DELETE", None)):
                theirs = yours.request(method, f"{PROMPTS}/{made['id']}", json=body)
                nobodys = yours.request(method, f"{PROMPTS}/{'0' * 32}", json=body)
                assert theirs.status_code == nobodys.status_code == 404
                assert theirs.text.replace(made["id"], "0" * 32) == nobodys.text
            assert mine.get(PROMPTS).json()["prompts"] == [made]
            assert httpx.get(live.url + PROMPTS).status_code == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [({"text": "t"}, "name"), ({"name": "n"}, "text"), ({"name": 3, "text": "t"}, "name"), ({}, "name"),
     ({"name": "n", "text": ["t"]}, "text"), ({"name": "", "text": "t"}, "name"), ({"nam": "n"}, "nam")],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_by_name(body: dict[str, Any], param: str, tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nx") as live, live.client() as client:
        refused = client.post(PROMPTS, json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
        plain = client.post(PROMPTS, content=b'{"name": "n", "text": "t"}',
                            headers={"Origin": "http://elsewhere.example", "Content-Type": "text/plain"})  # fmt: skip
        assert plain.status_code == 415
        assert client.get(PROMPTS).json() == {"prompts": []}
