"""Calls that a server ran in earlier turns, as the model gets them again: code and MCP calls with their outputs.

What searches found is not kept in their items, so those calls are left out; the answers that rest on them stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm4.chat.messages import Message, ToolCall

BUILTIN_CALLS = (
    "code_interpreter_call",
    "web_search_call",
    "file_search_call",
    "mcp_call",
    "mcp_list_tools",
)


def call_messages(item: Mapping[str, Any], raw: Sequence[str]) -> list[Message]:
    """A call and its result; nothing of calls whose result is not in the item.

    Args:
        raw: tools whose arguments the model writes as they are.
    """
    if item.get("status") == "incomplete":
        return []
    if item["type"] == "code_interpreter_call":
        code = str(item.get("code") or "")
        arguments = code if "python" in raw else json.dumps({"code": code}, ensure_ascii=False)
        outputs = item.get("outputs")
        logs = (
            [str(one.get("logs") or "") for one in outputs if isinstance(one, Mapping)]
            if isinstance(outputs, list)
            else []
        )
        return _exchange(item, "python", arguments, "\n".join(filter(None, logs)))
    if item["type"] == "mcp_call":
        name = f"{item.get('server_label', '')}__{item.get('name', '')}"
        said = str(item["output"]) if item.get("output") else _error(item.get("error"))
        return _exchange(item, name, str(item.get("arguments") or "{}"), said)
    return []


def _error(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error or "")
    content = error.get("content")
    parts = content if isinstance(content, list) else []
    texts = [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
    return "\n".join(texts) or str(error.get("message", ""))


def _exchange(item: Mapping[str, Any], name: str, arguments: str, output: str) -> list[Message]:
    call = ToolCall(str(item["id"]), name, arguments)
    return [Message("assistant", tool_calls=(call,)), Message("tool", output, tool_call_id=call.id)]
