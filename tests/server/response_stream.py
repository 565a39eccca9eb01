"""A streamed response as a client puts it together, and responses without what is new in each."""

from __future__ import annotations

import json
from typing import Any

SERVED = ("code_interpreter_call", "web_search_call", "file_search_call", "mcp_call", "mcp_list_tools")
"""Items of calls that the server runs; `_code` and `_arguments` events are told apart before these."""


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from deltas; every `done` must say the same."""
    output: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            assert event["item"].get("status", "in_progress") == "in_progress"
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
        elif kind == "output_text.annotation.added":
            annotations = item["content"][event["content_index"]]["annotations"]
            assert event["annotation_index"] == len(annotations)
            item["content"][event["content_index"]]["annotations"] = [*annotations, event["annotation"]]
        elif kind == "code_interpreter_call_code.delta":
            item["code"] += event["delta"]
        elif kind == "code_interpreter_call_code.done":
            assert event["code"] == item["code"]
        elif kind == "mcp_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "mcp_call_arguments.done":
            assert event["arguments"] == item["arguments"]
        elif kind.startswith(SERVED):
            assert kind.split(".")[0] == item["type"]
            item["states"] = [*item.get("states", []), kind.split(".")[1]]
        elif kind.endswith("text.delta"):
            part = item["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in part:
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        elif kind.endswith("text.done"):
            assert event["text"] == item["content"][event["content_index"]]["text"]
        else:
            assert kind == "output_item.done"
            if "status" in item:
                item["status"] = event["item"]["status"]
            if item["type"].startswith(SERVED):
                _check_states(item, event["item"])
            assert event["item"] == item
    return output


def _check_states(item: dict[str, Any], done: dict[str, Any]) -> None:
    """A call of the server's went through the states that OpenAI's service has; what it brought comes at the end."""
    states = item.pop("states")
    running = {"code_interpreter_call": "interpreting", "web_search_call": "searching", "file_search_call": "searching"}
    assert states[0] == "in_progress"
    if done.get("status") == "completed":
        assert states[1:] == [*filter(None, [running.get(item["type"])]), "completed"]
    for name in ("outputs", "action", "queries", "output", "error", "tools"):
        if name in item:
            item[name] = done[name]


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what is new in each: ids and times."""
    new = {"id": "", "call_id": "", "created_at": 0, "completed_at": 0}
    response = json.loads(json.dumps(response))
    output = [
        item | {key: "" for key in ("id", "call_id", "container_id") if key in item} for item in response["output"]
    ]
    for item in output:
        for part in item.get("content", []):
            part["annotations"] = [
                one | ({"container_id": ""} if "container_id" in one else {}) for one in part.get("annotations", [])
            ]
    return response | {key: value for key, value in new.items() if key in response} | {"output": output}
