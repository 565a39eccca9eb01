"""Reading nested objects: unknown members are refused, errors name the path (`messages.0.content.1`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.errors import InvalidRequestError, shown


def refusal(where: str, text: str) -> InvalidRequestError:
    """An error that names a path in the body."""
    return InvalidRequestError(f"{where}: {text}", param=where)


def members(where: str, value: Any, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
    """The members of an object that are not null.

    Raises:
        InvalidRequestError: not an object, an unknown member, or a required one is missing; `.param` is its path.
    """
    if not isinstance(value, Mapping):
        raise refusal(where, "must be an object")
    given = {key: one for key, one in value.items() if one is not None}
    for key in given:
        if key not in known:
            raise refusal(f"{where}.{key[:80]}", "this field is not supported")
    for key in required:
        if key not in given:
            raise refusal(f"{where}.{key}", "this field is required")
    return given


def string(where: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise refusal(where, "must be a string")
    return value


def one_of(where: str, value: Any, allowed: Sequence[Any]) -> Any:
    """A value that must be one of the supported ones."""
    if not any(value == one and type(value) is type(one) for one in allowed):
        choice = " or ".join(repr(one) for one in allowed)
        raise refusal(where, f"{shown(value)} is not supported; only {choice} is")
    return value


def kind(where: str, value: Any) -> str:
    """The `type` of an object."""
    if not isinstance(value, Mapping):
        raise refusal(where, "must be an object")
    if "type" not in value:
        raise refusal(f"{where}.type", "this field is required")
    return string(f"{where}.type", value["type"])


def check_cache_control(where: str, given: Mapping[str, Any]) -> None:
    """Check a hint for Anthropic's cache; ours keeps every prompt, so the hint only has to be well formed."""
    if "cache_control" in given:
        place = f"{where}.cache_control".removeprefix(".")
        hint = members(place, given["cache_control"], ("type", "ttl", "scope"), ("type",))
        one_of(f"{place}.type", hint["type"], ["ephemeral"])
