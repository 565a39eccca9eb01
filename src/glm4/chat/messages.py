"""Messages and tool calls. Plain data; no token ids here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glm4.chat.parts import Part, TextPart, read_part
from glm4.errors import InvalidRequestError

Role = Literal["system", "user", "assistant", "tool", "observation"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool", "observation")


@dataclass(frozen=True)
class ToolCall:
    """A call the model asks for. `arguments` is the JSON text exactly as written (it may be invalid JSON)."""

    id: str
    name: str
    arguments: str


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
    """

    role: Role
    content: _Content = _Content()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    metadata: str | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def text(self) -> str:
        """The text parts, joined with line breaks."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "message") -> Message:
        """Read an OpenAI-style (or GLM-4-style) message dictionary; unknown keys and wrong types are rejected.

        Args:
            where: its location in the request, for errors.

        Raises:
            InvalidRequestError: with `.param` naming the key.
        """
        unknown = set(raw) - _KNOWN_KEYS
        if unknown:
            raise InvalidRequestError(f"unknown message field {sorted(unknown)[0]!r}", param="messages")
        role = raw.get("role")
        if role == "developer":
            role = "system"
        if role not in ROLES:
            raise InvalidRequestError(f"message role must be one of {', '.join(ROLES)}, not {role!r}", param="messages")
        return cls(
            role=role,
            content=_content(raw.get("content"), f"{where}.content"),
            reasoning=_optional_text(raw, "reasoning_content"),
            tool_calls=tuple(_tool_call(call, index) for index, call in enumerate(raw.get("tool_calls") or ())),
            tool_call_id=_optional_text(raw, "tool_call_id"),
            metadata=_optional_text(raw, "metadata"),
            tools=tuple(raw.get("tools") or ()),
        )


_KNOWN_KEYS = {
    "role",
    "content",
    "name",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "metadata",
    "tools",
    "refusal",
}


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


def _optional_text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"message field {key!r} must be a string", param="messages")
    return value


def _content(content: object, where: str) -> str | list[Part]:
    """OpenAI allows null, a string, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequestError("message content must be a string or a list of parts", param="messages")
    return [read_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _tool_call(raw: object, index: int) -> ToolCall:
    if isinstance(raw, ToolCall):
        return raw
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"tool_calls[{index}] must be an object with function.name", param="messages")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=str(raw.get("id") or f"call_{index}"), name=function["name"], arguments=arguments)
