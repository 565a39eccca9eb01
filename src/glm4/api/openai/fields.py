"""The fields of request bodies: each one's JSON schema and how it is read. One table a body, at the foot.

A reader checks the JSON type and returns the value as the rest of glm4 wants it; ranges are checked by
`SamplingParams`, whose field names are used where a field is a sampling option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glm4.chat.parts import AUDIO_FORMATS, DETAILS
from glm4.errors import InvalidRequestError
from glm4.sampling_params import (
    MAX_LOGPROBS,
    MAX_N,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
)

Schema = Mapping[str, Any]
Reader = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Field:
    """One field of a body.

    Attributes:
        schema: JSON schema of a value; null is allowed beside it everywhere and means "not given".
        read: (name, value) → value; raises InvalidRequestError.
        sampling: the field of SamplingParams it sets, if it is a sampling option.
    """

    schema: Schema
    read: Reader
    sampling: str | None = None


def as_it_is(name: str, value: Any) -> Any:
    """For values that somebody else checks."""
    return value


def boolean(name: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, not {value!r}", param=name)
    return value


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, not {value!r}", param=name)
    return value


def is_int(value: Any) -> bool:
    """A whole number; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def token_ids(name: str, value: Any) -> list[int]:
    """A list of token ids."""
    if not isinstance(value, list) or not all(is_int(token) for token in value):
        raise InvalidRequestError(f"{name} must be a list of token ids", param=name)
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be an object", param=name)
    return value


def only(*allowed: Any) -> Reader:
    """A field of which only some values are done here."""

    def read(name: str, value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in allowed):
            choice = " or ".join(repr(one) for one in allowed)
            raise InvalidRequestError(f"{name} = {value!r} is not supported; only {choice} is", param=name)
        return value

    return read


def _stop(name: str, value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
        raise InvalidRequestError(f"{name} must be a string or a list of strings", param=name)
    return strings


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    for token in mapping(name, value):
        # int() would also take "1_0" and digits of other scripts
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise InvalidRequestError(f"{name} has a key that is no token id: {token!r}", param=name)
    return {int(token): bias for token, bias in value.items()}


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


def _stream_options(name: str, value: Any) -> Mapping[str, bool]:
    known = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    for key, one in mapping(name, value).items():
        if key not in known:
            raise InvalidRequestError(f"unsupported field {key!r} in {name}", param=f"{name}.{key}")
        if one is not None and not isinstance(one, bool):
            raise InvalidRequestError(f"{name}.{key} must be true or false", param=f"{name}.{key}")
    if value.get("include_obfuscation"):
        raise InvalidRequestError(
            "padding of streams (include_obfuscation) is not supported", param=f"{name}.include_obfuscation"
        )
    return {key: bool(one) for key, one in value.items()}


def _number(low: float | None = None, high: float | None = None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": "number"} | {key: bound for key, bound in bounds.items() if bound is not None}


def _integer(low: int | None = None, high: int | None = None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": "integer"} | {key: bound for key, bound in bounds.items() if bound is not None}


BOOLEAN: Schema = {"type": "boolean"}
STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
IDS: Schema = {"type": "array", "items": _integer(0)}
_STRINGS: Schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOP_STRINGS}
_LOGIT_BIAS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": _number(-100, 100),
}


def _option(name: str, schema: Schema, read: Reader = as_it_is) -> tuple[str, Field]:
    return name, Field(schema, read, sampling=name)


OPTIONS: Mapping[str, Field] = MappingProxyType(
    dict(
        [
            _option("temperature", _number(0, MAX_TEMPERATURE)),
            _option("top_p", {**_number(None, 1), "exclusiveMinimum": 0}),
            _option("top_k", _integer(-1)),
            _option("min_p", _number(0, 1)),
            _option("max_tokens", _integer(1)),
            _option("min_tokens", _integer(0)),
            _option("n", _integer(1, MAX_N)),
            _option("seed", _integer()),
            _option("presence_penalty", _number(-2, 2)),
            _option("frequency_penalty", _number(-2, 2)),
            _option("repetition_penalty", _number(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)),
            _option("stop", {"anyOf": [{"type": "string", "minLength": 1}, _STRINGS]}, _stop),
            _option("stop_token_ids", IDS, token_ids),
            _option("ignore_eos", BOOLEAN, boolean),
            _option("include_stop_str_in_output", BOOLEAN, boolean),
            _option("skip_special_tokens", BOOLEAN, boolean),
            _option("prompt_logprobs", _integer(0, MAX_LOGPROBS)),
            _option("logit_bias", _LOGIT_BIAS, _logit_bias),
        ]
    )
)
"""Sampling options of every body that generates text."""

LABELS: Mapping[str, Field] = MappingProxyType(
    {name: Field(STRING, text) for name in ("user", "safety_identifier", "prompt_cache_key")}
)
"""Fields that change nothing about the answer: whose request it is, and a hint for a cache that needs none."""

_COMMON = {
    **OPTIONS,
    **LABELS,
    "model": Field(STRING, text),
    "stream": Field(BOOLEAN, boolean),
    "stream_options": Field(
        {
            "type": "object",
            "properties": {"include_usage": BOOLEAN, "continuous_usage_stats": BOOLEAN},
            "additionalProperties": False,
        },
        _stream_options,
    ),
    "metadata": Field(
        {
            "type": "object",
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
            "maxProperties": 16,
        },
        _metadata,
    ),
    "structured_outputs": Field(
        {
            "type": "object",
            "description": "Exactly one of these (vLLM's field).",
            "properties": {
                "json": {"anyOf": [OBJECT, STRING]},
                "json_object": BOOLEAN,
                "regex": STRING,
                "choice": {"type": "array", "items": STRING},
                "grammar": {"type": "string", "description": "Lark"},
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
        mapping,
    ),
    "return_token_ids": Field(BOOLEAN, boolean),
    "return_tokens_as_token_ids": Field(BOOLEAN, boolean),
}

_TOOL_SCHEMA: Schema = {
    "type": "array",
    "maxItems": 128,
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"type": "string", "description": "function, or python, simple_browser, cogview (GLM-4's own)"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": STRING, "description": STRING, "parameters": OBJECT, "strict": BOOLEAN},
            },
        },
    },
}
_CHOICE_SCHEMA: Schema = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "required": ["name"], "properties": {"name": STRING}},
            },
        },
    ]
}
_FORMAT_SCHEMA: Schema = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object"]},
                "schema": {"type": "object", "description": "of a json_object, as llama.cpp has it"},
            },
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": STRING, "description": STRING, "schema": OBJECT, "strict": BOOLEAN},
                },
            },
        },
    ]
}
_CALL_SCHEMA: Schema = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": STRING,
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": STRING, "arguments": STRING}},
    },
}


def part_schema(kind: str, value: Schema) -> dict[str, Any]:
    """A content part of one type, its value under the type's own name."""
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {"const": kind}, kind: value},
    }


AUDIO: Schema = {
    "type": "object",
    "required": ["data", "format"],
    "properties": {"data": STRING, "format": {"enum": list(AUDIO_FORMATS)}},
    "additionalProperties": False,
}
_URL: Schema = {"type": "object", "required": ["url"], "properties": {"url": STRING}, "additionalProperties": False}
_IMAGE: Schema = {**_URL, "properties": {"url": STRING, "detail": {"enum": list(DETAILS)}}}
_PART_SCHEMA: Schema = {
    "description": "Parts other than text are for models that can read them.",
    "anyOf": [
        part_schema("text", STRING),
        part_schema("image_url", _IMAGE),
        part_schema("input_audio", AUDIO),
        part_schema("audio_url", _URL),
    ],
}
_MESSAGES_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool", "observation"]},
            "content": {"anyOf": [STRING, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]},
            "name": STRING,
            "tool_calls": {"type": "array", "items": _CALL_SCHEMA},
            "tool_call_id": STRING,
            "reasoning_content": STRING,
            "refusal": {"type": ["string", "null"]},
            "metadata": {"type": "string", "description": "GLM-4's text after the role"},
            "tools": {"type": "array", "items": OBJECT, "description": "GLM-4's tools of a system message"},
        },
        "additionalProperties": False,
    },
}

CHAT_FIELDS: Mapping[str, Field] = MappingProxyType(
    _COMMON
    | {
        "messages": Field(_MESSAGES_SCHEMA, as_it_is),
        "tools": Field(_TOOL_SCHEMA, _tools),
        "tool_choice": Field(_CHOICE_SCHEMA, as_it_is),
        "parallel_tool_calls": Field(BOOLEAN, boolean),
        "response_format": Field(_FORMAT_SCHEMA, mapping),
        "max_completion_tokens": Field(_integer(1), as_it_is),
        "logprobs": Field(BOOLEAN, boolean),
        "top_logprobs": Field(_integer(0, MAX_LOGPROBS), as_it_is),
        "add_generation_prompt": Field(BOOLEAN, boolean),
        "chat_template_kwargs": Field(OBJECT, mapping),
        "include_reasoning": Field(BOOLEAN, boolean),
        "modalities": Field({"enum": [["text"]]}, only(["text"])),
        "service_tier": Field({"enum": ["auto", "default"]}, only("auto", "default")),
        "store": Field({"enum": [False]}, only(False)),
        "verbosity": Field({"enum": ["medium"]}, only("medium")),
        "reasoning_effort": Field({"enum": ["medium"]}, only("medium")),
    }
)
"""Fields of a /v1/chat/completions body."""

COMPLETION_FIELDS: Mapping[str, Field] = MappingProxyType(
    _COMMON
    | {
        "prompt": Field(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": STRING, "minItems": 1},
                    {**IDS, "minItems": 1},
                    {"type": "array", "items": {**IDS, "minItems": 1}, "minItems": 1},
                ]
            },
            as_it_is,
        ),
        "max_tokens": Field(_integer(0), as_it_is),
        "echo": Field(BOOLEAN, boolean),
        "logprobs": Field(_integer(0, MAX_LOGPROBS), as_it_is),
        "best_of": Field(_integer(1, MAX_N), as_it_is),
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
"""Fields of OpenAI's schema that are not done here, and why."""


def read_fields(
    body: Mapping[str, Any], table: Mapping[str, Field], refused: Mapping[str, str] = REFUSED
) -> dict[str, Any]:
    """The fields that are not null, each read by its row.

    Args:
        refused: why fields that other servers know are not done here.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or of the wrong type; `.param` names it.
    """
    read: dict[str, Any] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name not in table:
            reason = f": {refused[name]}" if name in refused else ""
            raise InvalidRequestError(f"unsupported field {name!r}{reason}", param=name)
        read[name] = table[name].read(name, value)
    return read


def body_schema(table: Mapping[str, Field], required: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a body with these fields, for the OpenAPI document."""
    properties = {
        name: field.schema if name in required else {"anyOf": [field.schema, {"type": "null"}]}
        for name, field in table.items()
    }
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }
