"""The fields of /v1/messages and /v1/messages/count_tokens: each one's JSON schema and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glm4.api.anthropic.content import read_messages, read_system
from glm4.api.anthropic.members import check_cache_control, kind, members, one_of, refusal, string
from glm4.api.anthropic.tools import read_tool_choice, read_tools
from glm4.api.fields import BOOLEAN, STRING, Field, as_it_is, boolean, is_int, only, text
from glm4.api.schemas import schemas
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
    """The chat template decides about thinking from earlier turns, so an edit that clears it has no effect."""
    edits = members(name, value, ("edits",)).get("edits", [])
    if not isinstance(edits, list):
        raise refusal(f"{name}.edits", "must be a list")
    for index, edit in enumerate(edits):
        place = f"{name}.edits.{index}"
        one_of(f"{place}.type", kind(place, edit), ["clear_thinking_20251015"])
        members(place, edit, ("type", "keep"))
    return True


def _diagnostics(name: str, value: Any) -> bool:
    """Whether there is an earlier message to compare against."""
    given = members(name, value, ("previous_message_id",))
    string(f"{name}.previous_message_id", given.get("previous_message_id", ""))
    return "previous_message_id" in given


_SCHEMAS = schemas("anthropic")
_PROMPT: Mapping[str, Field] = {
    "model": Field(STRING, text),
    "messages": Field(_SCHEMAS["messages"], lambda name, value: read_messages(value)),
    "system": Field(_SCHEMAS["texts"], lambda name, value: read_system(value)),
    "tools": Field(_SCHEMAS["tools"], lambda name, value: read_tools(value)),
    "tool_choice": Field(_SCHEMAS["tool_choice"], lambda name, value: read_tool_choice(value)),
    "thinking": Field(_SCHEMAS["thinking"], _thinking),
    "output_config": Field(_SCHEMAS["output_config"], _output_config),
    "context_management": Field(_SCHEMAS["context_management"], _context_management),
    "cache_control": Field(_SCHEMAS["cache_control"], _cache_control),
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
        "top_p": Field({"type": "number", "minimum": 0, "maximum": 1}, as_it_is, sampling="top_p"),
        "top_k": Field({"type": "integer", "minimum": 0}, _whole, sampling="top_k"),
        "stream": Field(BOOLEAN, boolean),
        "metadata": Field(_SCHEMAS["metadata"], _metadata),
        "service_tier": Field({"enum": ["auto", "standard_only"]}, only("auto", "standard_only")),
        "diagnostics": Field(_SCHEMAS["diagnostics"], _diagnostics),
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
"""Fields of Anthropic's schema that are not supported, and why."""

REFUSED_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "anthropic-user-profile-id": "user_profile_id is not supported: this server knows no user profiles",
        "anthropic-workspace-id": "workspace_id is not supported: this server knows no workspaces",
    }
)
"""Client library parameters that are sent as headers."""
