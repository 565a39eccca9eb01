"""Checks of conversations that come from elsewhere: what is read of them later has the form that it is read in."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from glm4.documents.citations import Source
from glm4.errors import InvalidRequestError

_LATEST = 253402300799  # the end of the year 9999, which is the last that programs can show


def as_object(value: object, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InvalidRequestError: it is something else; so do all functions here.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{where} must be an object", param=where)
    return dict(value)


def as_list(value: object, where: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where} must be a list", param=where)
    return value


def as_text(value: object, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where} must be a string", param=where)
    return value


def as_date(value: object, where: str) -> float:
    """Seconds since the epoch; 0 if it is not known."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _LATEST:
        raise InvalidRequestError(f"{where} must be seconds since 1970", param=where)
    return float(value)


def check_texts(given: Mapping[str, Any], needed: Iterable[str], others: Iterable[str], where: str) -> None:
    """Members that must be strings, and those that must be if they are there."""
    for name in (*needed, *(name for name in others if name in given)):
        as_text(given.get(name), f"{where}.{name}")


def check_params(given: dict[str, Any]) -> dict[str, Any]:
    """Options as `Session.params` has them; their values are checked when they are used."""
    for one in as_list(given.get("tools", []), "params.tools"):
        as_text(one, "params.tools")
    as_object(given.get("sampling", {}), "params.sampling")
    return given


def check_part(part: Mapping[str, Any], where: str) -> None:
    """A part of a message, as `Transcript.as_dict` has them."""
    check_texts(part, ("kind",), ("text", "tool", "arguments", "about", "name", "file", "message"), where)
    kind = part["kind"]
    if kind in ("text", "reasoning"):
        as_text(part.get("text"), f"{where}.text")
    if kind == "tool":
        check_texts(part, ("tool", "state", "arguments") if "call" in part else ("tool",), ("call", "state"), where)
    if kind == "file":
        check_texts(part, ("file", "name"), ("media_type",), where)
    for name, needed in (("output", ("channel", "text")), ("files", ("file", "name")), ("citations", ("title",))):
        for one in as_list(part.get(name, []), f"{where}.{name}"):
            check_texts(
                as_object(one, f"{where}.{name}"), needed, ("url", "file", "section", "text"), f"{where}.{name}"
            )
            if name == "citations" and not all(type(one.get(key)) is int for key in ("n", "start", "end")):
                raise InvalidRequestError(f"{where}.{name} has no numbers n, start and end", param=where)


def check_source(source: Mapping[str, Any], where: str) -> None:
    """A source that answers cite."""
    n, page = source.get("n"), source.get("page")
    if set(source) - {one.name for one in fields(Source)} or type(n) is not int or type(page) not in (int, type(None)):
        raise InvalidRequestError(f"{where} is not a list of numbered sources", param=where)
    optional = [name for name in ("url", "file", "section") if source.get(name) is not None]
    check_texts(source, ("title",), ("text", *optional), where)


def file_content(raw: object, where: str) -> tuple[str, bytes, str | None]:
    """A file's name, content and description."""
    given = as_object(raw, where)
    try:
        data = base64.b64decode(as_text(given.get("data", ""), f"{where}.data"), validate=True)
    except ValueError:  # also characters that are not ASCII
        raise InvalidRequestError(f"{where}.data is not base64", param=where) from None
    alt = given.get("alt")
    return as_text(given.get("name"), f"{where}.name"), data, None if alt is None else as_text(alt, f"{where}.alt")
