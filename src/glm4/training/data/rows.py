"""Rows of files, one at a time, each with its place. A row that cannot be read says so; reading goes on behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import TrainingDataError
from glm4.system.json_lines import parse_object, read_lines


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: such as "train.jsonl:17": the file as the user named it, and the line at which the row begins, or its
            number in tables, from 1.
        position: how much of the file is read with it, in bytes.
        problem: why the row cannot be read, if so; `value` is empty then.
    """

    value: Mapping[str, Any]
    place: str
    position: int = 0
    problem: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order.

    Raises:
        TrainingDataError: there is no such file, it cannot be read, or its suffix is not known.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TrainingDataError(f"{path} has no known suffix; known are {', '.join(READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path} is damaged UTF-16 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise TrainingDataError(f"cannot read {path}: {error.strerror or error}") from None


def _json_lines(path: Path) -> Iterator[Row]:
    for line in read_lines(path):
        value, problem = parse_object(line.data)
        place = f"{path}:{line.number}"
        if problem:
            yield Row({}, place, line.end, f"the line {problem}; write one JSON object per line, or delete it")
        else:
            yield Row(value, place, line.end)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
}
