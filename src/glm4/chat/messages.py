"""Messages and tool calls. Plain data; no token ids here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glm4.errors import InvalidRequestError

Role = Literal["system", "user", "assistant", "tool", "observation"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool", "observation")


@dataclass(frozen=True)
class ToolCall:
    """A call the model wants made. `arguments` is the JSON text exactly as written (it may be invalid JSON)."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant, tool (OpenAI's name) or observation (GLM-4's name for the same).
        content: the text; empty for an assistant turn that only calls tools.
        reasoning: the model's hidden thinking, where the dialect has such a part.
        tool_calls: calls an assistant turn made.
        tool_call_id: which call a tool turn answers.
        metadata: GLM-4's text after the role tag (the tool's name of an assistant turn),
            normally derived from tool_calls.
        tools: tools attached to a system turn in GLM-4's own style; normally passed beside the messages.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    metadata: str | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Message:
        """Read an OpenAI-style (or GLM-4-style) message dictionary; unknown keys and wrong types are refused.

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
            content=_text(raw.get("content")),
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
    """Accept Message objects and dictionaries side by side."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise InvalidRequestError("messages must be a list of messages", param="messages")
    return [m if isinstance(m, Message) else Message.from_dict(_mapping(m)) for m in messages]


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"a message must be an object, not {type(value).__name__}", param="messages")
    return value


def _optional_text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"message field {key!r} must be a string", param="messages")
    return value


def _text(content: object) -> str:
    """OpenAI allows null, a string, or a list of parts; only text parts have a meaning for a text model."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError("message content must be a string or a list of parts", param="messages")
    pieces: list[str] = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequestError(
                f"this model takes text only; cannot use a content part of type {kind!r}", param="messages"
            )
        pieces.append(part["text"])
    return "\n".join(pieces)


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
