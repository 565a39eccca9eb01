"""Calls that a server ran in earlier turns: read, and as the model gets them again: code and MCP calls with outputs.

What searches found is not kept in their items, so those calls are left out; the answers that rest on them stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm4.api.fields import Reader, mapping, only, text
from glm4.chat.messages import Message, ToolCall
from glm4.errors import InvalidRequestError, shown


def read_call(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An item of such a call, without its null fields, as the API gives it back; it may lack its id.

    Raises:
        InvalidRequestError: a field is unknown, missing or of another type; `.param` names it.
    """
    kind = given["type"]
    fields, needed, missing = BUILTIN_CALLS[kind]
    for key in given:
        if key != "type" and key not in fields and key != "id":
            raise InvalidRequestError(f"unsupported field {shown(key)} in {where}", param=f"{where}.{key}")
    for key in needed:
        if key not in given:
            raise InvalidRequestError(f"{where}.{key} is missing", param=f"{where}.{key}")
    read = {key: fields[key](f"{where}.{key}", given[key]) for key in fields if key in given}
    return {**({"id": text(f"{where}.id", given["id"])} if "id" in given else {}), "type": kind, **missing, **read}


def _objects(*keys: str) -> Reader:
    """A list of objects that have these keys."""

    def read(name: str, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(one, Mapping) and {*keys} <= {*one} for one in value):
            having = f" with {' and '.join(keys)}" if keys else ""
            raise InvalidRequestError(f"{name} must be a list of objects{having}", param=name)
        return value

    return read


def _outputs(name: str, value: Any) -> Any:
    """What code printed and drew."""
    for index, one in enumerate(_objects("type")(name, value)):
        key = {"logs": "logs", "image": "url"}.get(one["type"] if isinstance(one["type"], str) else "")
        if key is None or {*one} != {"type", key} or not isinstance(one[key], str):
            raise InvalidRequestError(
                f"{name}[{index}] must have logs, or the url of an image", param=f"{name}[{index}]"
            )
    return value


def _action(name: str, value: Any) -> Any:
    return _objects("type")(name, [value])[0]


def _queries(name: str, value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of strings", param=name)
    return value


_STATUS = only("in_progress", "interpreting", "searching", "calling", "completed", "incomplete", "failed")
_DONE: Mapping[str, Any] = {"status": "completed"}
BUILTIN_CALLS: Mapping[str, tuple[Mapping[str, Reader], tuple[str, ...], Mapping[str, Any]]] = {
    "code_interpreter_call": (
        {"status": _STATUS, "code": text, "container_id": text, "outputs": _outputs},
        ("container_id",), {**_DONE, "code": None, "outputs": None},
    ),
    "web_search_call": ({"status": _STATUS, "action": _action}, ("action",), _DONE),
    "file_search_call": (
        {"status": _STATUS, "queries": _queries, "results": _objects()}, ("queries",), {**_DONE, "results": None},
    ),
    "mcp_call": (
        {
            "status": _STATUS, "server_label": text, "name": text, "arguments": text, "output": text, "error": mapping,
            "approval_request_id": text,
        },
        ("server_label", "name", "arguments"),
        {**_DONE, "output": None, "error": None, "approval_request_id": None},
    ),
    "mcp_list_tools": (
        {"server_label": text, "tools": _objects("name", "input_schema"), "error": text},
        ("server_label", "tools"), {"error": None},
    ),
}  # fmt: skip
"""Type of item → its fields besides the id, those that must be there, and what the others are if they are not."""


def call_messages(item: Mapping[str, Any], raw: Sequence[str]) -> list[Message]:
    """A call and its result; nothing of calls whose result is not in the item.

    Args:
        raw: tools whose arguments the model writes as they are.
    """
    if item.get("status") == "incomplete":
        return []
    if item["type"] == "code_interpreter_call":
        code = item["code"] or ""
        arguments = code if "python" in raw else json.dumps({"code": code}, ensure_ascii=False)
        logs = [one.get("logs", "") for one in item["outputs"] or ()]
        return _exchange(item, "python", arguments, "\n".join(filter(None, logs)))
    if item["type"] == "mcp_call":
        name = f"{item['server_label']}__{item['name']}"
        return _exchange(item, name, item["arguments"] or "{}", item["output"] or _error(item["error"] or {}))
    return []


def _error(error: Mapping[str, Any]) -> str:
    content = error.get("content")
    parts = content if isinstance(content, list) else []
    texts = [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
    return "\n".join(texts) or str(error.get("message", ""))


def _exchange(item: Mapping[str, Any], name: str, arguments: str, output: str) -> list[Message]:
    call = ToolCall(str(item["id"]), name, arguments)
    return [Message("assistant", tool_calls=(call,)), Message("tool", output, tool_call_id=call.id)]
