"""`{"messages": […]}`: the original repository's rows and OpenAI's.

Both have roles and contents. The original has `tools` on the system message, results of role "observation", calls as
plain JSON in the content of the assistant, and a picture as `image` of the first message of the user; OpenAI has
`tools` beside the messages, `tool_calls`, results of role "tool", pictures as parts, and a `weight` of 0 or 1 per
message. Rows may mix the two. Other fields of a row are passed over; unknown ones of a message are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import refusal
from glm4.errors import shown
from glm4.training.data.examples import ChatExample
from glm4.training.data.formats.row_values import (
    RESULT_ROLES,
    Setting,
    as_list,
    as_text,
    conversation,
    is_call,
    place_pictures,
    read_picture,
    read_tools,
    required,
    tool_name,
)

RAW_TOOLS = ("python", "simple_browser", "cogview")  # GLM-4's own; what they are asked is not JSON


_INSTEAD = ("tool_calls", "function_call", "metadata", "tools")  # a message with one of them needs no content


def read_messages(row: Mapping[str, Any], setting: Setting, place: str) -> ChatExample:
    """A row of the original or of OpenAI.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    name = turns_field(row, setting, ("messages", "conversations"))
    messages, weights = read_turns(required(row, name), setting, name)
    return chat_example(messages, weights, row, setting, place)


def turns_field(row: Mapping[str, Any], setting: Setting, names: Sequence[str]) -> str:
    """The field with the turns: the one that `Columns` names, or of the usual names the first that the row has."""
    return setting.columns.messages or next((name for name in names if row.get(name) is not None), names[0])


def chat_example(
    messages: Sequence[Message], weights: Sequence[int], row: Mapping[str, Any], setting: Setting, place: str
) -> ChatExample:
    """The example of these turns and of what a row has beside them: tools, pictures, a system message.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    whole, tools = row_messages(messages, row, setting)
    weights = [*[0] * (len(whole) - len(messages)), *weights]
    request = conversation(whole, tools)
    weighted = any(weight == 0 for weight, m in zip(weights, whole, strict=True) if m.role == "assistant")
    return ChatExample(request, tuple(weights) if weighted else None, place)


def row_messages(
    messages: Sequence[Message], row: Mapping[str, Any], setting: Setting
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages with the system message and the pictures that a row has beside them, and its tools."""
    columns = setting.columns
    if system := as_text(row.get(columns.system), columns.system):
        messages = [Message("system", system), *messages]
    tools = read_tools(row.get(columns.tools), columns.tools)
    pictures = [
        read_picture(value, setting, f"{columns.images}[{index}]")
        for index, value in enumerate(as_list(row.get(columns.images), columns.images))
    ]
    return place_pictures(with_calls(messages, tools), pictures), tools


def read_turns(value: Any, setting: Setting, where: str) -> tuple[list[Message], list[int]]:
    """Messages and the weight of each."""
    messages, weights = [], []
    for index, raw in enumerate(as_list(value, where)):
        message, weight = _read_message(raw, setting, f"{where}[{index}]")
        messages.append(message)
        weights.append(weight)
    return messages, weights


def _read_message(raw: Any, setting: Setting, where: str) -> tuple[Message, int]:
    if not isinstance(raw, Mapping):
        raise refusal(where, f"a message must be an object, not {shown(raw)}")
    given = {key: value for key, value in raw.items() if value is not None}
    columns = setting.columns
    for name, usual in ((columns.role, "role"), (columns.content, "content")):
        if name and name != usual and name in given:
            given[usual] = given.pop(name)
    weight = read_weight(given.pop("weight", None), f"{where}.weight")
    if "content" not in given and not any(given.get(key) for key in _INSTEAD):
        raise refusal(f"{where}.content", "is missing")
    picture = given.pop("image", None)
    given["content"] = _content(given.get("content", ""), setting, f"{where}.content")
    if "tools" in given:
        given["tools"] = read_tools(given["tools"], f"{where}.tools")
    message = Message.from_dict(given, where)
    if message.role != "assistant" and not message.content and not message.tools and message.role not in RESULT_ROLES:
        raise refusal(f"{where}.content", "is empty")
    if picture is not None:
        if message.role != "user":
            raise refusal(f"{where}.image", "only messages of the user have pictures")
        part = read_picture(picture, setting, f"{where}.image")
        message = replace(message, content=[*message.content, part])
    return message, weight


def read_weight(value: Any, where: str) -> int:
    """Whether a turn is trained: 0 or 1; null is 1."""
    if value is None:
        return 1
    if isinstance(value, str) or value not in (0, 1):
        raise refusal(where, f"must be 0 or 1, not {shown(value)}")
    return int(value)


def _content(content: Any, setting: Setting, where: str) -> Any:
    """A content in which pictures are parts that have been read."""
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes)):
        return content
    parts: list[Any] = []
    for index, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            source = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key)), None)
            parts.append(read_picture(source, setting, f"{where}[{index}]"))
        elif isinstance(part, Mapping):
            parts.append({key: value for key, value in part.items() if value is not None})
        else:
            parts.append(part)
    return parts


def with_calls(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages in which a call that stands in the content, as plain text, is a call.

    `{"name": …, "arguments": …}`, a list of such, or GLM-4's own `name\\n{…}` is one if a result follows; at the end
    of a conversation, if it names a tool of the row. Elsewhere it is text.
    """
    offered = [*tools, *(tool for message in messages for tool in message.tools)]
    names = {str(tool_name(tool)) for tool in offered}
    out = []
    for index, message in enumerate(messages):
        follower = messages[index + 1].role if index + 1 < len(messages) else None
        if message.role == "assistant" and not is_call(message) and (follower is None or follower in RESULT_ROLES):
            calls = _written_calls(message.text, names)
            if calls and (follower or all(call.name in names for call in calls)):
                out.append(replace(message, content="", tool_calls=calls))
                continue
        out.append(message)
    return out


def _written_calls(text: str, names: set[str]) -> tuple[ToolCall, ...]:
    first, _, rest = text.strip().partition("\n")
    name = first.strip()
    if name in RAW_TOOLS and name in names:
        return (ToolCall("", name, rest),)
    if name in names and rest.lstrip().startswith("{"):
        return (ToolCall("", name, rest.strip()),)
    return json_calls(text)


def json_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls that a JSON text is: an object with name and arguments, or a list of them; none if it is another."""
    if text.lstrip()[:1] not in ("{", "["):
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict) or set(one) - {"name", "arguments", "parameters"} or len(one) != 2:
            return ()
        arguments = one.get("arguments", one.get("parameters"))
        if not isinstance(one.get("name"), str) or not isinstance(arguments, (dict, str)):
            return ()
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall("", one["name"], written))
    return tuple(calls)
