"""How the fields of request bodies are described and read, and the fields that several APIs share.

A reader checks the JSON type and returns the value in glm4's internal form. `SamplingParams` checks ranges; a field
that is a sampling option uses its name there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glm4.api.schemas import Schema
from glm4.errors import InvalidRequestError, shown
from glm4.sampling_params import (
    MAX_LOGPROBS,
    MAX_N,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)

MAX_SALT = 1024

Reader = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Field:
    """One field of a request body.

    Attributes:
        schema: JSON schema of a value; null is also allowed everywhere and means "not given".
        read: (name, value) → value; raises InvalidRequestError.
        sampling: the field of SamplingParams it sets, if it is a sampling option.
    """

    schema: Schema
    read: Reader
    sampling: str | None = None


def as_it_is(name: str, value: Any) -> Any:
    """The value unchanged, for values that are checked elsewhere."""
    return value


def boolean(name: str, value: Any) -> bool:
    """A boolean: true or false."""
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, not {shown(value)}", param=name)
    return value


def salt(name: str, value: Any) -> str:
    """vLLM's `cache_salt`: prompts cached under another one are not reused."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SALT:
        raise InvalidRequestError(f"{name} must be a text of 1 to {MAX_SALT} characters", param=name)
    return value


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, not {shown(value)}", param=name)
    return value


def is_int(value: Any) -> bool:
    """A whole number; true and false are not numbers here."""
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
    """A field that supports only some values."""

    def read(name: str, value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in allowed):
            choice = " or ".join(repr(one) for one in allowed)
            raise InvalidRequestError(f"{name} = {shown(value)} is not supported; only {choice} is", param=name)
        return value

    return read


def _stop(name: str, value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
        raise InvalidRequestError(f"{name} must be a string or a list of strings", param=name)
    return strings


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    for token in mapping(name, value):
        # int() would also accept "1_0" and digits of other scripts
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise InvalidRequestError(f"{name} has a key that is no token id: {shown(token)}", param=name)
    return {int(token): bias for token, bias in value.items()}


def number(low: float | None = None, high: float | None = None) -> Schema:
    """The schema of a number within bounds."""
    bounds = {"minimum": low, "maximum": high}
    return {"type": "number"} | {key: bound for key, bound in bounds.items() if bound is not None}


def integer(low: int | None = None, high: int | None = None) -> Schema:
    """The schema of a whole number within bounds."""
    bounds = {"minimum": low, "maximum": high}
    return {"type": "integer"} | {key: bound for key, bound in bounds.items() if bound is not None}


BOOLEAN: Schema = {"type": "boolean"}
STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
IDS: Schema = {"type": "array", "items": integer(0)}
_STRINGS: Schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOP_STRINGS}
_LOGIT_BIAS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": number(-100, 100),
}


def _option(name: str, schema: Schema, read: Reader = as_it_is) -> tuple[str, Field]:
    return name, Field(schema, read, sampling=name)


OPTIONS: Mapping[str, Field] = MappingProxyType(
    dict(
        [
            _option("temperature", number(0, MAX_TEMPERATURE)),
            _option("top_p", number(0, 1)),
            _option("top_k", integer(-1)),
            _option("min_p", number(0, 1)),
            _option("max_tokens", integer(1)),
            _option("min_tokens", integer(0)),
            _option("n", integer(1, MAX_N)),
            _option("seed", integer()),
            _option("presence_penalty", number(-2, 2)),
            _option("frequency_penalty", number(-2, 2)),
            _option("repetition_penalty", number(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)),
            _option("stop", {"anyOf": [{"type": "string", "minLength": 1}, _STRINGS]}, _stop),
            _option("stop_token_ids", IDS, token_ids),
            _option("ignore_eos", BOOLEAN, boolean),
            _option("include_stop_str_in_output", BOOLEAN, boolean),
            _option("skip_special_tokens", BOOLEAN, boolean),
            _option("prompt_logprobs", integer(0, MAX_LOGPROBS)),
            _option("logit_bias", _LOGIT_BIAS, _logit_bias),
        ]
    )
)
"""Sampling options of every request body that generates text."""


SALT = Field({"type": "string", "minLength": 1, "maxLength": MAX_SALT}, salt)

LABELS: Mapping[str, Field] = MappingProxyType(
    {name: Field(STRING, text) for name in ("user", "safety_identifier", "prompt_cache_key")}
)
"""Fields that do not change the answer: who sent the request, and a hint our cache does not need."""


def read_fields(
    body: Mapping[str, Any], table: Mapping[str, Field], refused: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The fields that are not null, each read by its row of the table.

    Args:
        refused: fields known to other servers, each with the reason it is not supported here.

    Raises:
        InvalidRequestError: a field is unknown, unsupported or of the wrong type; `.param` names it.
    """
    read: dict[str, Any] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name not in table:
            reason = f": {refused[name]}" if refused and name in refused else ""
            raise InvalidRequestError(f"unsupported field {name!r}{reason}", param=name)
        read[name] = table[name].read(name, value)
    return read


def sampling_params(
    defaults: SamplingParams, changes: Mapping[str, Any], sent_as: Mapping[str, str] | None = None
) -> SamplingParams:
    """The model's own sampling options with those of a request.

    Args:
        sent_as: option → the request's field that sets it, where the names differ; errors name the field.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    try:
        return defaults.replace(**changes)
    except InvalidRequestError as error:
        field = (sent_as or {}).get(error.param or "")
        if field is None:
            raise
        raise InvalidRequestError(str(error).replace(str(error.param), field, 1), param=field) from None


def body_schema(table: Mapping[str, Field], required: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a request body with these fields, for the OpenAPI document."""
    properties = {
        name: field.schema if name in required else {"anyOf": [field.schema, {"type": "null"}]}
        for name, field in table.items()
    }
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}
