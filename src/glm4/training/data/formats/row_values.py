"""What the formats share: values of a row, pictures, tools, the order of turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.parts import MAX_MEDIA_NBYTES, ImagePart, refusal
from glm4.errors import InvalidRequestError, shown
from glm4.system.strict_json import finite_float, refuse_constant
from glm4.training.data.formats.columns import Columns

RESULT_ROLES = ("tool", "observation")


@dataclass(frozen=True)
class Setting:
    """What reading a row depends on, besides the row.

    Attributes:
        image_folder: where relative paths of pictures begin.
    """

    columns: Columns = field(default_factory=Columns)
    image_folder: Path = Path()


@dataclass(frozen=True)
class LocalImage(ImagePart):
    """A picture of this machine; a data set keeps its path and not its bytes."""

    path: str = field(default="", compare=False)


def read_picture(value: object, setting: Setting, where: str) -> ImagePart:
    """A picture that a row names: a path, `{"path": …}` or `{"bytes": …}` (as tables have them), or a data: URL.

    Addresses are refused: training reads nothing from the network that the user did not name.

    Raises:
        InvalidRequestError: it is missing, unreadable, too large, or an address.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes):
        return ImagePart(value, where=where, type="image")
    if not isinstance(value, str) or not value:
        raise refusal(where, f"a picture must be the path of a file, not {shown(value)}")
    if value[:5].lower() == "data:":
        return ImagePart.from_url(value, where=where, type="image")
    if value[:7].lower() in ("http://", "https:/"):
        raise refusal(where, "pictures are not downloaded; save it beside the data and give its path")
    path = setting.image_folder / value.removeprefix("file://")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MEDIA_NBYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal(
            where, f"the picture {path} cannot be read: {reason}; correct the path, or set image_folder"
        ) from None
    return LocalImage(data, where=where, type="image", path=str(path.absolute()))


def from_json(value: Any, where: str) -> Any:
    """A value that tables and ShareGPT keep as JSON text; "" and null are None.

    Raises:
        InvalidRequestError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value, parse_constant=refuse_constant, parse_float=finite_float)
    except (ValueError, RecursionError) as error:
        raise refusal(where, f"must be JSON: {error}") from None


def as_list(value: Any, where: str) -> list[Any]:
    """A list, or JSON of one; null is empty."""
    value = from_json(value, where)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise refusal(where, f"must be a list, not {shown(value)}")
    return list(value)


def as_text(value: Any, where: str) -> str:
    """A text; null is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refusal(where, f"must be a text, not {shown(value)}")
    return value


def required(row: Mapping[str, Any], name: str) -> Any:
    """A field that a row must have.

    Raises:
        InvalidRequestError: it is not there, or null.
    """
    if row.get(name) is None:
        raise refusal(name, f"the row has no {name!r}; it has {', '.join(map(shown, row)) or 'nothing'}")
    return row[name]


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Tools with or without the "function" around them, without what tables fill in as null.

    Raises:
        InvalidRequestError: they are no list of objects.
    """
    tools = []
    for index, raw in enumerate(as_list(value, where)):
        tool = _without_nulls(from_json(raw, f"{where}[{index}]"))
        if not isinstance(tool, dict):
            raise refusal(f"{where}[{index}]", f"a tool must be an object, not {shown(raw)}")
        if "name" in tool and "function" not in tool:
            kind = tool.pop("type", "function")
            if kind != "function":
                raise refusal(f"{where}[{index}].type", f"must be 'function', not {shown(kind)}")
            tool = {"type": "function", "function": tool}
        if not isinstance(tool_name(tool), str):
            raise refusal(f"{where}[{index}]", f"a tool needs a name, which is a text; this one is {shown(tool)}")
        tools.append(tool)
    return tools


def tool_name(tool: Mapping[str, Any]) -> Any:
    """The name of a function, or the type of one of the model's own tools."""
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else tool.get("type")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def place_pictures(messages: Sequence[Message], pictures: Sequence[ImagePart]) -> list[Message]:
    """Messages with the pictures of the row: those that a text marks with `<image>`, the rest in the first message of
    the user.

    Raises:
        InvalidRequestError: there are more marks than pictures, or no message of the user.
    """
    if not pictures:
        return list(messages)
    waiting = list(pictures)
    placed = []
    for given in messages:
        message = given
        count = message.text.count("<image>") if message.role == "user" else 0
        if count > len(waiting):
            raise refusal("images", f"the texts have more places `<image>` than the row has pictures ({len(pictures)})")
        if count:
            text = message.text.replace("<image>", "").strip()
            content = [*Message("user", text).content, *waiting[:count]]
            message, waiting = replace(message, content=content), waiting[count:]
        placed.append(message)
    if waiting:
        first = next((index for index, message in enumerate(placed) if message.role == "user"), None)
        if first is None:
            raise refusal("images", "the row has pictures, but no message of the user for them")
        content = [*placed[first].content, *waiting]
        placed[first] = replace(placed[first], content=content)
    return placed


def conversation(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, answered: bool = True
) -> ChatRequest:
    """A checked conversation.

    Args:
        answered: it ends with a message of the assistant; else with one that the assistant answers.

    Raises:
        InvalidRequestError: the turns are in an order that no conversation with this model has.
    """
    if not messages:
        raise refusal("messages", "the row has no messages")
    for problem in _order_problems(messages, answered):
        raise problem
    return ChatRequest.of(messages, tools=tools, add_generation_prompt=False)


def is_call(message: Message) -> bool:
    """Whether a message asks for a tool."""
    return bool(message.tool_calls or message.metadata)


def _order_problems(messages: Sequence[Message], answered: bool) -> Iterator[InvalidRequestError]:
    before = "system"
    for index, message in enumerate(messages):
        role = "observation" if message.role in RESULT_ROLES else message.role
        where = f"messages[{index}]"
        if role == "system" and before != "system":
            yield refusal(where, "a system message must come first, before all other messages")
        if role == "user" and before == "user":
            yield refusal(where, "two messages of the user in a row; join them into one")
        if role == "user" and before == "call":
            yield refusal(where, "the call before it has no result; add a message of role 'observation' (or 'tool')")
        if role == "assistant" and before == "system":
            yield refusal(where, "the assistant speaks first; a message of the user must come before it")
        if role == "assistant" and before == "call" and not is_call(message):
            yield refusal(where, "the call before it has no result; add a message of role 'observation' (or 'tool')")
        if role == "assistant" and before == "assistant" and not is_call(message):
            yield refusal(where, "two messages of the assistant in a row; join them into one")
        if role == "assistant" and not message.content and not is_call(message):
            yield refusal(where, "the assistant says nothing; give it an answer, or delete the message")
        if role == "observation" and before not in ("call", "observation"):
            yield refusal(
                where,
                "a result of a tool must follow a call: an assistant's message with tool_calls, with metadata, or whose"
                ' content is {"name": …, "arguments": …}',
            )
        before = "call" if role == "assistant" and is_call(message) else role
    if answered and before not in ("assistant", "call"):
        yield refusal(
            f"messages[{len(messages) - 1}]",
            f"the last message is of role {messages[-1].role!r}; it must be the assistant's, which is what is learned",
        )
    if not answered and before not in ("user", "observation"):
        yield refusal(
            f"messages[{len(messages) - 1}]",
            f"the prompt ends with role {messages[-1].role!r}; it must end with a message that the assistant answers",
        )
