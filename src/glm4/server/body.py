"""Reading request bodies: size, time, JSON. Everything a client sends is untrusted until it is read here."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from glm4.server.errors import ApiError
from glm4.server.memory import BodyMemory
from glm4.system.strict_json import NotJsonError, finite_float, refuse_constant

MAX_DEPTH = 64
"""Maximum nesting of arrays and objects; deeper bodies are refused before any code walks them."""
MAX_VALUES = 1 << 20
"""Maximum number of values, such as token ids. Parsing these takes a tenth of a second, and nothing else runs then."""
MAX_CONTAINERS = 1 << 16
"""Maximum number of arrays and objects, each of which takes 60 to 230 bytes."""

# An unterminated string extends to the end of the text: searching for it again from every quote inside it would take
# quadratic time.
_STRING_OR_MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


async def read_json(request: Request, memory: BodyMemory, *, limit: int, seconds: float, lists: bool = False) -> Any:
    """The JSON object of a request body, as a dict.

    Args:
        memory: what the body takes is held there.
        lists: take an array, too.
        limit: maximum bytes of the body.
        seconds: the body must arrive within this time.

    Raises:
        ApiError: too large (413), too slow (408), not sent as JSON (415), not a JSON object (400).
    """
    _check_type(request)
    raw = await read_body(request, memory, limit=limit, seconds=seconds)
    # Decoding a large body takes seconds; other streams continue meanwhile.
    return await memory.work(partial(decode_any if lists else decode, raw))


def _check_type(request: Request) -> None:
    """Refuse what a web page may send to this machine without a CORS preflight, which includes curl's default."""
    kind = request.headers.get("content-type")
    if kind is None and "origin" not in request.headers:
        return  # not a browser: those always send an origin
    media = (kind or "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise ApiError(415, "the body must be JSON and be sent with Content-Type: application/json")


async def read_body(request: Request, memory: BodyMemory, *, limit: int, seconds: float) -> bytes:
    """The raw body; see `read_json` for the errors."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        if len(declared) > 18 or int(declared) > limit:
            raise _too_large(limit)
        await memory.grow(int(declared))
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                await memory.grow(size)
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the request body did not arrive within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "the connection was closed before the body was complete") from None
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request body is larger than {limit / (1 << 20):g} MB")


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object from bytes; a UTF-8 byte order mark before it, as Windows editors write it, is ignored.

    Raises:
        ApiError: not UTF-8, not JSON, NaN, a lone surrogate, nested too deeply, too many values (413), not an object.
    """
    value = decode_any(raw)
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(value).__name__}", code="invalid_json")
    return value


def decode_any(raw: bytes) -> Any:
    """Any JSON value; see `decode`."""
    _check_encoding(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: {error.reason} at byte {error.start}"
        raise ApiError(400, message, code="invalid_json") from None
    _check_structure(text)
    try:
        value = json.loads(text, parse_constant=refuse_constant, parse_float=finite_float)
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            code="invalid_json",
        ) from None  # fmt: skip
    except ValueError as error:  # Python converts integers of a few thousand digits at most
        reason = str(error) if isinstance(error, NotJsonError) else "a number has too many digits"
        raise ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json") from None
    if "\\ud" in text or "\\uD" in text:
        _check_unicode(value)
    return value


def _check_encoding(raw: bytes) -> None:
    """Refuse UTF-16 and UTF-32 by name: with a mark, or with the zero bytes that JSON's ASCII has in them."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:4]:
        raise ApiError(400, "the body is UTF-16 or UTF-32; send JSON as UTF-8", code="invalid_json")


def _check_structure(text: str) -> None:
    """Refuse deep nesting and too many values before json recurses into them and creates them.

    Brackets and commas outside strings are counted; where even all of them are few, there is nothing to look at.
    """
    opened = text.count("[") + text.count("{")
    if opened <= MAX_DEPTH and opened + text.count(",") < MAX_VALUES:
        return
    depth = containers = commas = 0
    for match in _STRING_OR_MARK.finditer(text):
        character = text[match.start()]
        if character in "[{":
            depth += 1
            containers += 1
            if depth > MAX_DEPTH:
                raise ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
            if containers > MAX_CONTAINERS:
                raise _too_many(f"{MAX_CONTAINERS} arrays and objects")
        elif character in "]}":
            depth -= 1
        elif character == ",":
            commas += 1
            if commas + containers > MAX_VALUES:
                raise _too_many(f"{MAX_VALUES} values")


def _too_many(most: str) -> ApiError:
    return ApiError(413, f"the body has more than {most}; send several smaller requests", code="request_too_large")


def _check_unicode(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body has a lone surrogate, which is not valid Unicode", code="invalid_json") from None
