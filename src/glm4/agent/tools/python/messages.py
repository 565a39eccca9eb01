"""Messages of the worker, read without trust: whatever code wants can be written to the worker's pipe."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct(">II")
_MOST_JSON = 1 << 20
MOST_PICTURE_NBYTES = 5_000_000
MOST_FIGURES = 8
_MOST_PIXELS = 4096
_MOST_ALT_CHARS = 500
# Of one call: every figure, its text, and a traceback.
_MOST_NBYTES = MOST_FIGURES * (MOST_PICTURE_NBYTES + 10_000) + 2 * _MOST_JSON


class BrokenMessageError(Exception):
    """What came is no message, or is too large; nothing behind it can be read."""


@dataclass(frozen=True)
class Figure:
    """A picture: PNG, of at most `MOST_PICTURE_NBYTES` and 4,096 x 4,096 pixels by its header."""

    data: bytes
    alt: str


def pack(message: dict[str, Any]) -> bytes:
    """A message to the worker."""
    text = json.dumps(message).encode()
    return _HEADER.pack(len(text), 0) + text


class Messages:
    """Takes the bytes of one call apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._nbytes = 0

    def add(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The messages that more bytes complete: JSON, picture.

        Raises:
            BrokenMessageError
        """
        self._nbytes += len(data)
        if self._nbytes > _MOST_NBYTES:
            raise BrokenMessageError
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            json_nbytes, picture_nbytes = _HEADER.unpack_from(self._buffer)
            if json_nbytes > _MOST_JSON or picture_nbytes > MOST_PICTURE_NBYTES:
                raise BrokenMessageError
            end = _HEADER.size + json_nbytes
            if len(self._buffer) < end + picture_nbytes:
                return
            message = _parse(bytes(self._buffer[_HEADER.size : end]))
            picture = bytes(self._buffer[end : end + picture_nbytes])
            del self._buffer[: end + picture_nbytes]
            yield message, picture


def _parse(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise BrokenMessageError from None
    if not isinstance(message, dict):
        raise BrokenMessageError
    return message


def read_figure(message: dict[str, Any], data: bytes) -> Figure | None:
    """The figure of a message; None if it is not a picture as promised."""
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or not data.endswith(b"\0\0\0\0IEND\xaeB`\x82"):
        return None
    width, height = struct.unpack_from(">II", data, 16)
    if not (0 < width <= _MOST_PIXELS and 0 < height <= _MOST_PIXELS):
        return None
    alt = message.get("alt")
    return Figure(data, printable(alt, _MOST_ALT_CHARS) if isinstance(alt, str) else "")


def printable(text: str, limit: int) -> str:
    """One line of printable characters."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return "".join(character for character in line if character.isprintable())[:limit]
