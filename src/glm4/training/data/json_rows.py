"""Rows of .json files, without having a file in memory as text and as values at once.

A file is an array of objects, or objects one behind the other (an object on each line, too).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from glm4.system.strict_json import finite_float, refuse_constant
from glm4.system.text_encoding import HEAD_NBYTES, find_encoding

MAX_ROW_CHARS = 64 << 20
_CHUNK = 1 << 20
_SPACE = " \t\r\n\ufeff"
_DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite_float)

JsonItem = tuple[Any, int, int, str]
"""Value, line at which it begins, bytes read, and what is wrong with it ("" if nothing)."""


def read_json(path: Path) -> Iterator[JsonItem]:
    """The objects of a file. What is behind broken JSON cannot be read, and ends the rows.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    with path.open("rb") as file:
        encoding, skipped = find_encoding(file.read(HEAD_NBYTES))
        file.seek(skipped)
        with io.TextIOWrapper(file, encoding=encoding, newline="") as text:
            yield from _Items(file, text).read()


class _Items:
    def __init__(self, raw: BinaryIO, file: TextIO) -> None:
        self._raw, self._file = raw, file
        self._text = ""
        self._at = 0  # in `_text`
        self._line = 1
        self._read = 0

    def read(self) -> Iterator[JsonItem]:
        in_array = False
        if self._next() == "[":
            in_array = True
            self._skip(1)
        while (char := self._next()) and not (in_array and char == "]"):
            line = self._line
            value, problem = self._value()
            is_broken = bool(problem)
            if not is_broken and not isinstance(value, dict):
                problem = f"must be a JSON object, not a {type(value).__name__}"
            yield value, line, self._read, problem
            if is_broken:
                return
            separator = self._next()
            if separator == ",":
                self._skip(1)
            elif in_array and separator and separator != "]":
                yield {}, self._line, self._read, f"is not valid JSON: there is no comma before {separator!r}"
                return
        if in_array and not char:
            yield {}, self._line, self._read, "is not valid JSON: the array has no end; the file was cut off"

    def _value(self) -> tuple[Any, str]:
        size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at < MAX_ROW_CHARS and self._more(size):
                    size *= 2
                    continue
                line = self._line + self._text.count("\n", self._at, error.pos)
                return {}, f"is not valid JSON: {error.msg} in line {line}"
            except (ValueError, RecursionError) as error:
                return {}, f"is not valid JSON: {error}"
            if end == len(self._text) and self._more(size):  # a number could go on
                continue
            self._skip(end - self._at)
            return value, ""

    def _next(self) -> str:
        """The next character that is not a space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._skip(1)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _skip(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _more(self, size: int) -> bool:
        chunk = self._file.read(size)
        self._text = self._text[self._at :] + chunk
        self._at = 0
        self._read = self._raw.tell()
        return bool(chunk)


_MOST_LINE = 1 << 16


def read_text_pieces(path: Path, size: int = _CHUNK) -> Iterator[tuple[str, int, int, bool]]:
    """A text in pieces of about `size` characters that end with a line where lines are not longer than that.

    Yields each piece, the line at which it begins, bytes read (about), and whether the text goes on.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    with path.open("rb") as file:
        encoding, skipped = find_encoding(file.read(HEAD_NBYTES))
        file.seek(skipped)
        text = io.TextIOWrapper(file, encoding=encoding)
        line = 1
        piece = text.read(size) + text.readline(_MOST_LINE)
        while piece:
            following = text.read(size) + text.readline(_MOST_LINE)
            yield piece, line, file.tell(), bool(following)
            line += piece.count("\n")
            piece = following
