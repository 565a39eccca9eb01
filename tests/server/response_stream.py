"""A streamed response as a client puts it together, and responses without what is new in each."""

from __future__ import annotations

import json
from typing import Any


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from deltas; every `done` must say the same."""
    output: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            assert event["item"]["status"] == "in_progress"
            output.append(json.loads(json.dumps(event["item"])))
        if "output_index" not in event or kind == "output_item.added":
            continue
        item = output[event["output_index"]]
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            item["content"].append(dict(event["part"]))
        elif kind == "content_part.done":
            assert event["part"] == item["content"][event["content_index"]]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == item["arguments"]
        elif kind.endswith("text.delta"):
            part = item["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in part:
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        elif kind.endswith("text.done"):
            assert event["text"] == item["content"][event["content_index"]]["text"]
        else:
            assert kind == "output_item.done"
            item["status"] = event["item"]["status"]
            assert event["item"] == item
    return output


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what is new in each: ids and times."""
    new = {"id": "", "call_id": "", "created_at": 0, "completed_at": 0}
    output = [item | {key: "" for key in ("id", "call_id") if key in item} for item in response["output"]]
    return response | {key: value for key, value in new.items() if key in response} | {"output": output}
