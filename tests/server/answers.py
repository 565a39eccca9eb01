"""What clients make of streams: server-sent events read, and chunks joined into the message they describe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def read_events(body: str) -> list[Any]:
    """Data of server-sent events, comments left out; the end marker stays text."""
    blocks = [block.strip() for block in body.split("\n\n")]
    data = [block.removeprefix("data: ") for block in blocks if block and not block.startswith(":")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def joined_message(chunks: Iterable[Mapping[str, Any]], index: int = 0) -> tuple[dict[str, Any], str | None]:
    """One choice of a streamed chat answer as a message, and its finish_reason; joined as OpenAI's clients do it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    reason = None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            assert reason is None, "nothing follows the finish_reason"
            reason = choice["finish_reason"]
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for part in delta.get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += part.get("id", "")
                call["name"] += part["function"].get("name", "")
                call["arguments"] += part["function"].get("arguments", "")
    assert sorted(calls) == list(range(len(calls)))
    return message | {"tool_calls": [calls[at] for at in sorted(calls)]}, reason


def whole_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a whole answer in the form of `joined_message`."""
    calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content") or "",
        "tool_calls": calls,
    }


def without_ids(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose calls have lost their ids, which are random."""
    return {**message, "tool_calls": [{**call, "id": ""} for call in message["tool_calls"]]}
