"""Reading requests of the assistant's API. One table row per field; unknown fields are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from glm4.agent.prompts import MAX_NAME, MAX_TEXT
from glm4.agent.sessions import MAX_SYSTEM
from glm4.api.fields import (
    BOOLEAN,
    OBJECT,
    OPTIONS,
    STRING,
    Field,
    as_it_is,
    boolean,
    mapping,
    read_fields,
    sampling_params,
    text,
)
from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import SamplingParams

MAX_ID = 128
ROOT = "root"
"""As the parent of a message: it has none, and begins the conversation anew beside the first one."""
_STRINGS = {"type": "array", "items": STRING, "maxItems": 64}
_PARAMS = {
    name: row for name, row in OPTIONS.items() if row.sampling and name not in ("n", "logprobs", "prompt_logprobs")
}
DECISIONS = ("once", "always", "never")


@dataclass(frozen=True)
class TurnRequest:
    """A request for a turn.

    Attributes:
        client_id: of the client's choice; a second request with the same one gets the same turn.
        conversation: None begins a new one.
        parent: message that this one answers; None is the last one that is shown, `ROOT` is none.
        message: of the user; None answers `parent`, the user's message, anew.
        files: sha256 of files that were uploaded.
        tools: names of tools; None are those of the conversation.
        system: instructions, from this turn on.
        params: sampling options as they were given.
    """

    client_id: str | None = None
    conversation: str | None = None
    parent: str | None = None
    message: Message | None = None
    files: tuple[str, ...] = ()
    model: str | None = None
    tools: tuple[str, ...] | None = None
    system: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def parse_turn(body: Mapping[str, Any]) -> TurnRequest:
    """Read the body of a request for a turn.

    Raises:
        InvalidRequestError: a field is unknown or has an invalid value; `.param` names it.
    """
    given = read_fields(body, TURN_FIELDS)
    content = given.pop("content", None)
    if content is not None:
        given["message"] = Message.from_dict({"role": "user", "content": content}, "content")
    elif given.get("files"):
        raise InvalidRequestError("files need content: say what to do with them", param="content")
    elif "parent" not in given:
        raise InvalidRequestError("content is missing; or name the parent that is to be answered anew", param="content")
    elif given.get("parent") == ROOT:
        raise InvalidRequestError("content is missing; the parent root has no question to answer", param="content")
    if given.get("parent") is not None and given.get("conversation") is None:
        raise InvalidRequestError("parent needs the conversation it belongs to", param="conversation")
    return TurnRequest(**given)


def turn_params(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    """Sampling options of a turn.

    Raises:
        InvalidRequestError: see `SamplingParams`; `.param` names the option.
    """
    # An import may have brought any.
    given = _params("params", given)
    changes = {
        str(_PARAMS[name].sampling): _PARAMS[name].read(f"params.{name}", value) for name, value in given.items()
    }
    return sampling_params(defaults, changes, {str(_PARAMS[name].sampling): f"params.{name}" for name in given})


def _id(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        raise InvalidRequestError(f"{name} must be a text of 1 to {MAX_ID} characters, not {shown(value)}", param=name)
    return value


def _system(name: str, value: Any) -> str:
    if len(text(name, value)) > MAX_SYSTEM:
        raise InvalidRequestError(f"{name} may have {MAX_SYSTEM:,} characters, not {len(value):,}", param=name)
    return str(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of at most 64 strings", param=name)
    return tuple(value)


def _params(name: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(name, value).items() if one is not None}
    for key, one in given.items():
        if key not in _PARAMS:
            raise InvalidRequestError(f"{name} has no option {shown(key)}", param=f"{name}.{key}")
        _PARAMS[key].read(f"{name}.{key}", one)
    return given  # to be stored: as JSON, which not all of what was read is


def decision(name: str, value: Any) -> str:
    """What a user says to a call that waits for approval."""
    if value not in DECISIONS:
        raise InvalidRequestError(f"{name} must be {', '.join(DECISIONS)}, not {shown(value)}", param=name)
    return str(value)


_ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID}
_SYSTEM = {"type": "string", "maxLength": MAX_SYSTEM}
_CONTENT = {"anyOf": [STRING, {"type": "array", "items": OBJECT}]}
_PARAMS_SCHEMA = {
    "type": "object",
    "properties": {name: {"anyOf": [row.schema, {"type": "null"}]} for name, row in _PARAMS.items()},
    "additionalProperties": False,
}

TURN_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "client_id": Field(_ID, _id),
        "conversation": Field(_ID, _id),
        "parent": Field(_ID, _id),
        "content": Field(_CONTENT, as_it_is),
        "files": Field(_STRINGS, _names),
        "model": Field(STRING, text),
        "tools": Field(_STRINGS, _names),
        "system": Field(_SYSTEM, _system),
        "params": Field(_PARAMS_SCHEMA, _params),
    }
)
"""Fields of a request for a turn."""

APPROVAL_FIELDS: Mapping[str, Field] = MappingProxyType({"decision": Field({"enum": list(DECISIONS)}, decision)})

CHANGE_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "title": Field(STRING, text),
        "system": Field(_SYSTEM, _system),
        "model": Field(STRING, text),
        "pinned": Field(BOOLEAN, boolean),
        "leaf": Field(_ID, _id),
        "tools": Field(_STRINGS, _names),
        "params": Field(_PARAMS_SCHEMA, _params),
    }
)
"""What can be changed of a conversation."""

PROMPT_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "name": Field({"type": "string", "minLength": 1, "maxLength": MAX_NAME}, text),
        "text": Field({"type": "string", "maxLength": MAX_TEXT}, text),
    }
)
"""A saved system prompt."""
