"""The fields of /v1/messages and /v1/messages/count_tokens: each one's JSON schema and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glm4.api.anthropic.content import read_messages, read_system
from glm4.api.anthropic.members import check_cache_control, kind, members, one_of, refusal, string
from glm4.api.anthropic.tools import read_tool_choice, read_tools
from glm4.api.openai.fields import BOOLEAN, OBJECT, STRING, Field, Schema, as_it_is, boolean, is_int, only, text
from glm4.sampling_params import MAX_STOP_STRINGS

EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING = ("enabled", "adaptive", "between_tools", "disabled")


def _whole(name: str, value: Any) -> int:
    if not is_int(value) or value < 0:
        raise refusal(name, "must be a whole number of at least 0")
    return value  # type: ignore[no-any-return]


def _stop_sequences(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise refusal(name, "must be a list of strings, none of them empty")
    if len(value) > MAX_STOP_STRINGS:
        raise refusal(name, f"at most {MAX_STOP_STRINGS} are taken")
    return value


def _cache_control(name: str, value: Any) -> None:
    check_cache_control("", {name: value})


def _metadata(name: str, value: Any) -> None:
    given = members(name, value, ("user_id",))
    string(f"{name}.user_id", given.get("user_id", ""))


def _thinking(name: str, value: Any) -> Mapping[str, Any]:
    what = one_of(f"{name}.type", kind(name, value), THINKING)
    known = {"enabled": ("budget_tokens", "display"), "adaptive": ("display",)}.get(what, ())
    given = members(name, value, ("type", *known), ("budget_tokens",) if what == "enabled" else ())
    budget = given.get("budget_tokens", 1)
    if not is_int(budget) or budget < 1:
        raise refusal(f"{name}.budget_tokens", "must be a whole number of at least 1")
    one_of(f"{name}.display", given.get("display", "summarized"), ["summarized", "omitted"])
    return given


def _output_config(name: str, value: Any) -> Mapping[str, Any]:
    given = members(name, value, ("effort", "format"))
    one_of(f"{name}.effort", given.get("effort", "medium"), EFFORTS)
    if "format" in given:
        place = f"{name}.format"
        form = members(place, given["format"], ("type", "schema"), ("type", "schema"))
        one_of(f"{place}.type", form["type"], ["json_schema"])
        if not isinstance(form["schema"], Mapping):
            raise refusal(f"{place}.schema", "must be an object")
    return given


def _context_management(name: str, value: Any) -> bool:
    """Thinking of earlier turns is the chat template's business, so an edit that clears it asks for nothing."""
    edits = members(name, value, ("edits",)).get("edits", [])
    if not isinstance(edits, list):
        raise refusal(f"{name}.edits", "must be a list")
    for index, edit in enumerate(edits):
        place = f"{name}.edits.{index}"
        one_of(f"{place}.type", kind(place, edit), ["clear_thinking_20251015"])
        members(place, edit, ("type", "keep"))
    return True


def _diagnostics(name: str, value: Any) -> bool:
    """Whether there is an earlier message to compare with."""
    given = members(name, value, ("previous_message_id",))
    string(f"{name}.previous_message_id", given.get("previous_message_id", ""))
    return "previous_message_id" in given


def _closed(properties: Mapping[str, Schema], *required: str) -> dict[str, Any]:
    """An object with these members and no others."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


_CACHE_CONTROL = {
    **_closed({"type": {"const": "ephemeral"}, "ttl": {"enum": ["5m", "1h"]}}, "type"),
    "description": "A hint without effect: prompts are always cached.",
}


def _block(what: str, properties: Mapping[str, Schema], *optional: str) -> Schema:
    """A content block; its optional members, and cache_control, may be missing."""
    required = [name for name in properties if name not in optional]
    return _closed({"type": {"const": what}, **properties, "cache_control": _CACHE_CONTROL}, "type", *required)


_TEXT = _block("text", {"text": STRING})
_TEXTS: Schema = {"anyOf": [STRING, {"type": "array", "items": _TEXT}]}
_DATA = _closed({"type": {"const": "base64"}, "media_type": STRING, "data": STRING}, "type", "media_type", "data")
_SOURCE: Schema = {"anyOf": [_DATA, _closed({"type": {"const": "url"}, "url": STRING}, "type", "url")]}
_IMAGE: Schema = {**_block("image", {"source": _SOURCE}), "description": "for models that can see"}
_RESULT: Schema = {"anyOf": [STRING, {"type": "array", "items": {"anyOf": [_TEXT, _IMAGE]}}]}
_BLOCK: Schema = {
    "anyOf": [
        _TEXT,
        _IMAGE,
        _closed({"type": {"const": "thinking"}, "thinking": STRING, "signature": STRING}, "type", "thinking"),
        _closed({"type": {"const": "redacted_thinking"}, "data": STRING}, "type", "data"),
        _block("tool_use", {"id": STRING, "name": STRING, "input": OBJECT}),
        _block("tool_result", {"tool_use_id": STRING, "content": _RESULT, "is_error": BOOLEAN}, "content", "is_error"),
        _block("document", {"source": OBJECT, "title": STRING, "context": STRING}, "title", "context"),
        _block("search_result", {"source": STRING, "title": STRING, "content": {"type": "array", "items": _TEXT}}),
    ]
}
_MESSAGE = _closed(
    {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": {"anyOf": [STRING, {"type": "array", "items": _BLOCK}]},
    },
    "role",
    "content",
)
_TOOL = _closed(
    {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,128}$"},
        "description": STRING,
        "input_schema": OBJECT,
        "type": {"const": "custom"},
        "strict": BOOLEAN,
        "input_examples": {"type": "array", "items": OBJECT},
        "eager_input_streaming": BOOLEAN,
        "cache_control": _CACHE_CONTROL,
    },
    "name",
    "input_schema",
)
_ALONE: Mapping[str, Schema] = {"disable_parallel_tool_use": BOOLEAN}
_TOOL_CHOICE: Schema = {
    "anyOf": [
        _closed({"type": {"enum": ["auto", "any"]}, **_ALONE}, "type"),
        _closed({"type": {"const": "tool"}, "name": STRING, **_ALONE}, "type", "name"),
        _closed({"type": {"const": "none"}}, "type"),
    ]
}
_DISPLAY: Mapping[str, Schema] = {"display": {"enum": ["summarized", "omitted"]}}
_BUDGET: Schema = {"type": "integer", "minimum": 1, "description": "A hint without effect."}
_THINKING: Schema = {
    "anyOf": [
        _closed({"type": {"const": "enabled"}, "budget_tokens": _BUDGET, **_DISPLAY}, "type", "budget_tokens"),
        _closed({"type": {"const": "adaptive"}, **_DISPLAY}, "type"),
        _closed({"type": {"enum": ["between_tools", "disabled"]}}, "type"),
    ]
}
_OUTPUT_CONFIG = _closed(
    {
        "effort": {"enum": list(EFFORTS), "description": "A hint without effect."},
        "format": _closed({"type": {"const": "json_schema"}, "schema": OBJECT}, "type", "schema"),
    }
)
_EDIT = _closed({"type": {"const": "clear_thinking_20251015"}, "keep": {}}, "type")

_PROMPT: Mapping[str, Field] = {
    "model": Field(STRING, text),
    "messages": Field({"type": "array", "minItems": 1, "items": _MESSAGE}, lambda name, value: read_messages(value)),
    "system": Field(_TEXTS, lambda name, value: read_system(value)),
    "tools": Field({"type": "array", "items": _TOOL}, lambda name, value: read_tools(value)),
    "tool_choice": Field(_TOOL_CHOICE, lambda name, value: read_tool_choice(value)),
    "thinking": Field(_THINKING, _thinking),
    "output_config": Field(_OUTPUT_CONFIG, _output_config),
    "context_management": Field(_closed({"edits": {"type": "array", "items": _EDIT}}), _context_management),
    "cache_control": Field(_CACHE_CONTROL, _cache_control),
    "speed": Field({"enum": ["standard"]}, only("standard")),
}

MESSAGE_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        **_PROMPT,
        "max_tokens": Field({"type": "integer", "minimum": 0}, _whole),
        "stop_sequences": Field(
            {"type": "array", "maxItems": MAX_STOP_STRINGS, "items": {"type": "string", "minLength": 1}},
            _stop_sequences,
            sampling="stop",
        ),
        "temperature": Field({"type": "number", "minimum": 0}, as_it_is, sampling="temperature"),
        "top_p": Field({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, as_it_is, sampling="top_p"),
        "top_k": Field({"type": "integer", "minimum": 0}, _whole, sampling="top_k"),
        "stream": Field(BOOLEAN, boolean),
        "metadata": Field(_closed({"user_id": STRING}), _metadata),
        "service_tier": Field({"enum": ["auto", "standard_only"]}, only("auto", "standard_only")),
        "diagnostics": Field(_closed({"previous_message_id": STRING}), _diagnostics),
    }
)
"""Fields of a /v1/messages body."""
MESSAGE_REQUIRED = ("max_tokens", "messages")

COUNT_FIELDS: Mapping[str, Field] = MappingProxyType(dict(_PROMPT))
"""Fields of a /v1/messages/count_tokens body."""
COUNT_REQUIRED = ("messages",)

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "container": "this server runs no code",
        "inference_geo": "this server runs where it runs",
        "mcp_servers": "this server calls no MCP servers; let the client call them and send their tools",
        "compaction": "this server keeps no summaries",
        "thread": "this server keeps no conversations under this API; send all messages",
        "fallbacks": "only the model that was asked for answers",
        "fallback_credit_token": "nothing is billed here",
        "billing_policy": "nothing is billed here",
        "output_format": "the old name of output_config.format",
    }
)
"""Fields of Anthropic's schema that are not done here, and why."""

REFUSED_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "anthropic-user-profile-id": "user_profile_id is not supported: this server knows no user profiles",
        "anthropic-workspace-id": "workspace_id is not supported: this server knows no workspaces",
    }
)
"""Parameters of the client library that travel as headers."""
