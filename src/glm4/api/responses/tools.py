"""Tools in the Responses API, which writes functions flat; the rest of glm4 uses the chat-completions format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.api.fields import Reader, as_it_is, boolean, mapping, only, text
from glm4.api.responses.builtin import is_builtin, read_builtin
from glm4.chat.dialects.glm4 import RAW_TOOLS
from glm4.chat.tool_choice import ToolChoiceValue
from glm4.errors import InvalidRequestError, shown


def read_object(value: Any, where: str, fields: Mapping[str, Reader] | None = None) -> dict[str, Any]:
    """An object without its null fields, each field read by its reader; any object if there are no readers."""
    given = {key: one for key, one in mapping(where, value).items() if one is not None}
    for key in given:
        if fields is not None and key not in fields:
            raise InvalidRequestError(f"unsupported field {shown(key)} in {where}", param=f"{where}.{key}")
    return given if fields is None else {key: fields[key](f"{where}.{key}", one) for key, one in given.items()}


def read_tools(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a body, as the response object repeats them.

    Raises:
        InvalidRequestError: a tool is not a function, or has an unsupported field.
    """
    if not isinstance(value, list) or len(value) > 128:
        raise InvalidRequestError(f"{name} must be a list of at most 128 objects", param=name)
    return tuple(_tool(tool, f"{name}[{index}]") for index, tool in enumerate(value))


def _tool(raw: Any, where: str) -> dict[str, Any]:
    given = read_object(raw, where)
    kind = given.get("type")
    if kind in RAW_TOOLS and len(given) == 1:
        return given
    if is_builtin(kind):
        return read_builtin(given, where)
    if kind != "function":
        raise InvalidRequestError(
            f"{where}.type = {shown(kind)} is not supported; function is, which the caller runs, and code_interpreter,"
            f" web_search, file_search and mcp (and GLM-4's own {', '.join(RAW_TOOLS)})",
            param=f"{where}.type",
        )
    checks: Mapping[str, Reader] = {
        "type": text,
        "name": text,
        "description": text,
        "parameters": mapping,
        "strict": boolean,
        "defer_loading": only(False),
        "allowed_callers": only(["direct"]),
    }
    read = read_object(given, where, checks)
    if "name" not in read:
        raise InvalidRequestError(f"{where}.name is missing", param=f"{where}.name")
    return {
        "type": "function",
        "name": read["name"],
        "description": read.get("description"),
        "parameters": read.get("parameters"),
        "strict": read.get("strict"),
    }


def read_tool_choice(name: str, value: Any) -> str | dict[str, Any]:
    """The tool choice, as the response object repeats it."""
    if value in ("none", "auto", "required"):
        return str(value)
    if isinstance(value, Mapping) and value.get("type") == "function":
        read_object(value, name, {"type": text, "name": text})
        return {"type": "function", "name": text(f"{name}.name", value.get("name"))}
    if isinstance(value, Mapping) and value.get("type") == "allowed_tools":
        mode, tools = only("auto", "required")(f"{name}.mode", value.get("mode")), value.get("tools")
        read_object(value, name, {"type": text, "mode": text, "tools": as_it_is})
        if not isinstance(tools, list) or not tools:
            raise InvalidRequestError(f"{name}.tools must be a list of tools", param=f"{name}.tools")
        allowed = [read_object(tool, f"{name}.tools[{index}]") for index, tool in enumerate(tools)]
        return {"type": "allowed_tools", "mode": mode, "tools": allowed}
    kind = value.get("type") if isinstance(value, Mapping) else value
    raise InvalidRequestError(
        f"{name} = {shown(kind)} is not supported; only none, auto, required, a function and allowed_tools are",
        param=name,
    )


def offer(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any]
) -> tuple[tuple[Mapping[str, Any], ...], ToolChoiceValue]:
    """The tools to offer and the tool choice, in chat-completions format.

    Args:
        tools: from `read_tools`.
        choice: from `read_tool_choice`.

    Raises:
        InvalidRequestError: the choice names a tool that is not in `tools`.
    """
    if isinstance(choice, Mapping):
        wanted = [choice] if choice["type"] == "function" else choice["tools"]
        keys = {_key(tool) for tool in tools}
        for one in wanted:
            if _key(one) not in keys:
                raise InvalidRequestError(
                    f"tool_choice names a tool that is not in tools: {shown(one)}", param="tool_choice"
                )
        if choice["type"] == "function":
            return tuple(map(_chat_tool, tools)), {"type": "function", "function": {"name": choice["name"]}}
        # Tools that are not allowed are not shown to the model, so it does not call them.
        allowed = {_key(one) for one in wanted}
        return tuple(_chat_tool(tool) for tool in tools if _key(tool) in allowed), choice["mode"]
    if choice == "required" and not tools:
        raise InvalidRequestError("tool_choice = 'required' needs tools", param="tool_choice")
    return tuple(map(_chat_tool, tools)), choice


def _key(tool: Mapping[str, Any]) -> tuple[str, str]:
    return str(tool.get("type")), str(tool.get("name"))


def _chat_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool["type"] != "function":
        return tool
    function = {key: value for key, value in tool.items() if key != "type" and value is not None}
    return {"type": "function", "function": function}
