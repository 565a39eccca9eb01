"""Files with a JSON object on each line, read one line at a time: as programs write them and as people's editors do."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from glm4.system.strict_json import finite_float, refuse_constant
from glm4.system.text_encoding import HEAD_NBYTES, encoding_error, find_encoding

MAX_LINE_BYTES = 64 << 20


class Line(NamedTuple):
    """One non-empty line.

    Attributes:
        number: counted from 1.
        data: UTF-8, if the file is right; None when it is longer than the limit.
        end: bytes of the file up to the end of the line; approximate where a file is not UTF-8.
    """

    number: int
    data: bytes | None
    end: int


def read_lines(path: Path, most: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The non-empty lines of a file.

    Args:
        most: bytes of a line.

    Raises:
        OSError, and UnicodeDecodeError for damaged UTF-16.
    """
    number = end = 0
    with path.open("rb") as file:
        readline = _line_reader(file)
        while data := readline(most + 1):
            number += 1
            end += len(data)
            if len(data) > most and not data.endswith(b"\n"):
                while (rest := readline(most)) and not rest.endswith(b"\n"):
                    end += len(rest)
                end += len(rest)
                yield Line(number, None, end)
                continue
            data = data.removeprefix(codecs.BOM_UTF8)  # on later lines, too: files are joined with `cat`
            if data.strip():
                yield Line(number, data, end)


def parse_object(data: bytes | None, most: int = MAX_LINE_BYTES) -> tuple[Any, str | None]:
    """The value on a line, and what is wrong with the line if that is not an object of strict JSON."""
    if data is None:
        return None, f"is longer than {most >> 20} MB"
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse_constant, parse_float=finite_float)
    except UnicodeDecodeError as error:
        return None, str(encoding_error(error, "utf-8"))
    except json.JSONDecodeError as error:
        return None, f"is not valid JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return None, f"is not valid JSON: {error}"
    return value, None if isinstance(value, dict) else f"must be a JSON object, not a {type(value).__name__}"


def _line_reader(file: BinaryIO) -> Callable[[int], bytes]:
    """`readline` for a file from its beginning; the lines of UTF-16 files come as UTF-8."""
    encoding, _ = find_encoding(file.read(HEAD_NBYTES))
    file.seek(0)
    if encoding == "utf-8":
        return file.readline
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    return lambda size: text.readline(size).encode()
