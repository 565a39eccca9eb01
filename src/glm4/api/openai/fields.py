"""OpenAI's request bodies: one table per body, with each field's JSON schema and reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from glm4.api import fields
from glm4.api.fields import (
    BOOLEAN,
    LABELS,
    OBJECT,
    OPTIONS,
    SALT,
    STRING,
    Field,
    as_it_is,
    boolean,
    integer,
    mapping,
    only,
    text,
)
from glm4.api.schemas import schemas
from glm4.chat.dialects.base import RESERVED
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import MAX_LOGPROBS, MAX_N

NO_EFFORT = "none"
GUIDED: Mapping[str, str] = MappingProxyType({f"guided_{key}": key for key in ("json", "regex", "choice", "grammar")})
"""vLLM's older names for the members of `structured_outputs`."""
EFFORTS = (NO_EFFORT, "minimal", "low", "medium", "high", "xhigh", "max")


def _metadata(name: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in value.values()):
        raise InvalidRequestError(f"{name} must be an object of strings", param=name)
    if len(value) > 16 or any(len(key) > 64 or len(one) > 512 for key, one in value.items()):
        raise InvalidRequestError(
            f"{name} may have 16 entries, with keys of 64 and values of 512 characters at most", param=name
        )
    return value


def _tools(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise InvalidRequestError(f"{name} must be a list of objects", param=name)
    if len(value) > 128:
        raise InvalidRequestError(f"{name} may have at most 128 entries", param=name)
    return tuple(value)


def read_stream_options(name: str, value: Any) -> Mapping[str, bool]:
    """vLLM's `stream_options`."""
    known = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    for key, one in mapping(name, value).items():
        if key not in known:
            raise InvalidRequestError(f"unsupported field {shown(key)} in {name}", param=f"{name}.{key}")
        if one is not None and not isinstance(one, bool):
            raise InvalidRequestError(f"{name}.{key} must be true or false", param=f"{name}.{key}")
    if value.get("include_obfuscation"):
        raise InvalidRequestError(
            "padding of streams (include_obfuscation) is not supported", param=f"{name}.include_obfuscation"
        )
    return {key: bool(one) for key, one in value.items()}


def _template_kwargs(name: str, value: Any) -> Mapping[str, Any]:
    for key in mapping(name, value):
        if key in RESERVED:
            raise InvalidRequestError(f"{name} may not set {key!r}", param=name)
    return value  # type: ignore[no-any-return]


_SCHEMAS = schemas("openai")
_COMMON = {
    **OPTIONS,
    **LABELS,
    "model": Field(STRING, text),
    "stream": Field(BOOLEAN, boolean),
    "stream_options": Field(_SCHEMAS["stream_options"], read_stream_options),
    "metadata": Field(_SCHEMAS["metadata"], _metadata),
    "structured_outputs": Field(_SCHEMAS["structured_outputs"], mapping),
    "cache_salt": SALT,
    **{name: Field(_SCHEMAS["structured_outputs"]["properties"][key], as_it_is) for name, key in GUIDED.items()},
    "return_token_ids": Field(BOOLEAN, boolean),
    "return_tokens_as_token_ids": Field(BOOLEAN, boolean),
}

CHAT_FIELDS: Mapping[str, Field] = MappingProxyType(
    _COMMON
    | {
        "messages": Field(_SCHEMAS["messages"], as_it_is),
        "tools": Field(_SCHEMAS["tools"], _tools),
        "tool_choice": Field(_SCHEMAS["tool_choice"], as_it_is),
        "parallel_tool_calls": Field(BOOLEAN, boolean),
        "response_format": Field(_SCHEMAS["response_format"], mapping),
        "max_completion_tokens": Field(integer(1), as_it_is),
        "logprobs": Field(BOOLEAN, boolean),
        "top_logprobs": Field(integer(0, MAX_LOGPROBS), as_it_is),
        "add_generation_prompt": Field(BOOLEAN, boolean),
        "continue_final_message": Field(BOOLEAN, boolean),
        "chat_template_kwargs": Field(OBJECT, _template_kwargs),
        "include_reasoning": Field(BOOLEAN, boolean),
        "modalities": Field({"enum": [["text"]]}, only(["text"])),
        "service_tier": Field({"enum": ["auto", "default"]}, only("auto", "default")),
        "store": Field({"enum": [False]}, only(False)),
        "verbosity": Field({"enum": ["medium"]}, only("medium")),
        "reasoning_effort": Field({"enum": list(EFFORTS)}, only(*EFFORTS)),
    }
)
"""Fields of a /v1/chat/completions body."""

COMPLETION_FIELDS: Mapping[str, Field] = MappingProxyType(
    _COMMON
    | {
        "prompt": Field(_SCHEMAS["prompt"], as_it_is),
        "max_tokens": Field(integer(0), as_it_is),
        "echo": Field(BOOLEAN, boolean),
        "logprobs": Field(integer(0, MAX_LOGPROBS), as_it_is),
        "best_of": Field(integer(1, MAX_N), as_it_is),
        "add_special_tokens": Field(BOOLEAN, boolean),
        "parse_special": Field(BOOLEAN, boolean),
    }
)
"""Fields of a /v1/completions body."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "functions": "the old form of tools; send tools",
        "function_call": "the old form of tool_choice; send tool_choice",
        "audio": "these models write text only",
        "prediction": "repeated text is guessed without it",
        "web_search_options": "this server does not search",
        "suffix": "these models continue text; they do not fill gaps",
        "moderation": "this server has no moderation model",
        "prompt_cache_retention": "prompts are kept for as long as memory allows",
        "prompt_cache_options": "prompts are kept for as long as memory allows",
    }
)
"""Fields of OpenAI's schema that are not supported, and why."""

read_fields = partial(fields.read_fields, refused=REFUSED)
"""`glm4.api.fields.read_fields` for bodies in OpenAI's form."""
