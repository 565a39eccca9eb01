"""Messages and tool calls. Plain data; no token ids here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from glm4.chat.parts import Part, TextPart, read_part, read_thinking, refusal
from glm4.errors import InvalidRequestError, shown

Role = Literal["system", "user", "assistant", "tool", "observation"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool", "observation")


@dataclass(frozen=True)
class ToolCall:
    """A call the model asks for. `arguments` is the JSON text exactly as written (it may be invalid JSON).

    `id` is "" for a call that a caller wrote without one.
    """

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class _Content:
    """The descriptor behind `Message.content`: text or parts go in, parts come out."""

    def __get__(self, message: Message | None, owner: type[Message] | None = None) -> tuple[Part, ...]:
        return () if message is None else message.__dict__["content"]

    def __set__(self, message: Message, value: str | Iterable[Part]) -> None:
        if isinstance(value, str):
            value = (TextPart(value),) if value else ()
        message.__dict__["content"] = tuple(value)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant, tool (OpenAI's name) or observation (GLM-4's name for the same).
        content: text, images and audio, as parts; a plain string becomes one part. Empty for an assistant turn that
            only calls tools.
        reasoning: the model's hidden thinking, if the dialect has such a part.
        tool_calls: calls an assistant turn made.
        tool_call_id: which call a tool turn answers.
        metadata: GLM-4's text after the role tag (the tool's name of an assistant turn),
            normally derived from tool_calls.
        tools: tools attached to a system turn in GLM-4's own style; normally passed alongside the messages.
        name: the function whose call a tool turn without `tool_call_id` answers.
    """

    role: Role
    content: _Content = _Content()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    metadata: str | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    name: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined with line breaks."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    def as_dict(self) -> dict[str, Any]:
        """The message as `from_dict` reads it: OpenAI's form, and GLM-4's where that has none."""
        raw: dict[str, Any] = {"role": self.role, "content": self.text}
        if any(not isinstance(part, TextPart) for part in self.content):
            raw["content"] = [part.as_dict() for part in self.content]
        if self.reasoning is not None:
            raw["reasoning_content"] = self.reasoning
        if self.tool_calls:
            raw["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        for key in ("tool_call_id", "metadata", "name"):
            if getattr(self, key) is not None:
                raw[key] = getattr(self, key)
        if self.tools:
            raw["tools"] = [dict(tool) for tool in self.tools]
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "message") -> Message:
        """Read an OpenAI-style (or GLM-4-style) message dictionary.

        Null means "not given". Fields that answers carry and that mean nothing in a prompt are passed over; any other
        that is not honored is refused by name.

        Args:
            where: its location in the request, for errors.

        Raises:
            InvalidRequestError: with `.param` naming the field.
        """
        given = {str(key): value for key, value in raw.items() if value is not None}
        _check_keys(given, where)
        role = _role(given, where)
        texts = {key: _text(given[key], f"{where}.{key}") for key in _TEXTS if key in given}
        content, thoughts = _content(given.get("content", ""), role, f"{where}.content")
        if texts.get("refusal"):  # what the assistant said instead of an answer
            content.append(TextPart(texts["refusal"]))
        calls = _calls(given, where)
        if calls and role != "assistant":
            raise refusal(f"{where}.tool_calls", "only messages of the assistant have calls")
        reasoning = texts.get("reasoning_content", texts.get("reasoning"))
        is_result = role in ("tool", "observation")
        return cls(
            role=role,
            content=content,
            reasoning="\n".join(thoughts) if reasoning is None and thoughts else reasoning,
            tool_calls=calls,
            tool_call_id=texts.get("tool_call_id"),
            metadata=texts.get("metadata"),
            tools=_tools(given.get("tools", ()), f"{where}.tools"),
            name=texts.get("name") if is_result else None,
        )


_TEXTS = ("reasoning_content", "reasoning", "tool_call_id", "metadata", "name", "refusal")
_KNOWN = frozenset({"role", "content", "tool_calls", "function_call", "tools", *_TEXTS})
_WITHOUT_MEANING = frozenset(
    {
        "annotations",
        "cache_control",
        "id",
        "object",
        "parsed",
        "phase",
        "provider_specific_fields",
        "reasoning_details",
        "status",
        "thinking_blocks",
        "type",
    }
)
"""Fields of OpenAI's, vLLM's and litellm's answers, and of other APIs' messages, that a prompt has no use for."""

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "audio": "these models do not hear what they said; send audio.transcript as content",
        "images": "send pictures as image_url parts of content",
        "prefix": "send continue_final_message with the request",
    }
)


def as_messages(messages: object) -> list[Message]:
    """Accept a mix of Message objects and dictionaries."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise InvalidRequestError("messages must be a list of messages", param="messages")
    return [
        one if isinstance(one, Message) else Message.from_dict(_mapping(one), f"messages[{index}]")
        for index, one in enumerate(messages)
    ]


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"a message must be an object, not {type(value).__name__}", param="messages")
    return value


def _check_keys(given: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key in _REFUSED and value:
            raise refusal(f"{where}.{key}", f"this message field is not supported: {_REFUSED[key]}")
        if key not in _KNOWN and key not in _WITHOUT_MEANING and key not in _REFUSED:
            raise refusal(f"{where}.{key[:80]}", f"unknown message field {key[:80]!r}; leave it out")


def _role(given: Mapping[str, Any], where: str) -> Role:
    role = given.get("role")
    role = {"developer": "system", "function": "tool"}.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        raise refusal(
            f"{where}.role", f"message role must be one of {', '.join(ROLES)}, not {shown(given.get('role'))}"
        )
    return role


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise refusal(where, "must be a string")
    return value


def _content(content: object, role: Role, where: str) -> tuple[list[Part], list[str]]:
    """The parts of a message, and the thinking among them. OpenAI allows null, a string, or a list of parts."""
    if isinstance(content, str):
        return [TextPart(content)] if content else [], []
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise refusal(where, "message content must be a string or a list of parts")
    parts: list[Part] = []
    thoughts: list[str] = []
    for index, raw in enumerate(content):
        thought = read_thinking(raw, f"{where}[{index}]") if role == "assistant" else None
        if thought is None:
            parts.append(read_part(raw, f"{where}[{index}]"))
        elif thought:
            thoughts.append(thought)
    return parts, thoughts


def _tools(tools: object, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)):
        raise refusal(where, "must be a list of tools")
    return tuple(map(without_nulls, tools))


def without_nulls(tool: Any) -> Any:
    """A tool without what its caller left null, which would otherwise be in the prompt. Dialects check the rest."""
    if not isinstance(tool, Mapping):
        return tool
    given = {key: value for key, value in tool.items() if value is not None}
    function = given.get("function")
    if isinstance(function, Mapping):
        given["function"] = {key: value for key, value in function.items() if value is not None}
    return given


def _calls(given: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    """The calls of a message: `tool_calls`, or `function_call`, which is OpenAI's older form."""
    raw, place = given.get("tool_calls", ()), f"{where}.tool_calls"
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise refusal(place, "must be a list of calls")
    old = given.get("function_call")
    if not old:
        return tuple(_tool_call(call, f"{place}[{index}]") for index, call in enumerate(raw))
    if raw:
        raise refusal(f"{where}.function_call", "is the older form of tool_calls; send one of the two")
    return (_function("", old, f"{where}.function_call"),)


def _tool_call(raw: object, where: str) -> ToolCall:
    if isinstance(raw, ToolCall):
        return raw
    if not isinstance(raw, Mapping) or raw.get("type", "function") not in ("function", None):
        raise refusal(where, "must be an object of type function with function.name and function.arguments")
    call_id = raw.get("id")
    return _function("" if call_id is None else _text(call_id, f"{where}.id"), raw.get("function"), f"{where}.function")


def _function(call_id: str, raw: object, where: str) -> ToolCall:
    if not isinstance(raw, Mapping):
        raise refusal(where, "must be an object with name and arguments")
    arguments = raw.get("arguments")
    if isinstance(arguments, Mapping):  # some clients send what the text means
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            raise refusal(f"{where}.arguments", "is not JSON") from None
    name = _text(raw.get("name"), f"{where}.name")
    return ToolCall(call_id, name, "{}" if arguments is None else _text(arguments, f"{where}.arguments"))
