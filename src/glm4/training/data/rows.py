"""Rows of files, one at a time, each with its place. A row that cannot be read says so; reading goes on behind it.

Rows are data: nothing in them is run or fetched. Not covered: a row may name any picture that this user may read, and
parquet files are read by pyarrow in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import TrainingDataError
from glm4.system.json_lines import parse_object, read_lines
from glm4.system.text_encoding import encoding_error
from glm4.training.data.json_rows import read_json, read_text_pieces
from glm4.training.data.tables import TableRow, read_csv, read_hub, read_parquet


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: such as "train.jsonl:17": the file as the user named it, and the line at which the row begins, or its
            number in tables, from 1.
        position: how much of the file is read with it, in bytes.
        problem: why the row cannot be read, if so; `value` is empty then.
        goes_on: the row is a piece of a text that the next row continues.
    """

    value: Mapping[str, Any]
    place: str
    position: int = 0
    problem: str = ""
    goes_on: bool = False


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order.

    Raises:
        TrainingDataError: there is no such file, it cannot be read, or its suffix is not known.
        MissingExtraError: its format needs a package that is not installed.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TrainingDataError(f"{path} has no known suffix; known are {', '.join(READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path} {encoding_error(error, error.encoding)}") from None
    except OSError as error:
        raise TrainingDataError(f"cannot read {path}: {error.strerror or error}") from None


def read_hub_rows(name: str, split: str, *, streaming: bool) -> Iterator[Row]:
    """The rows of a data set of the hub; errors as `tables.read_hub`."""
    for values, number, _, _ in read_hub(name, split, streaming=streaming):
        yield Row(values, f"{name}:{number}")


def _json_lines(path: Path) -> Iterator[Row]:
    for line in read_lines(path):
        value, problem = parse_object(line.data)
        place = f"{path}:{line.number}"
        if problem:
            yield Row({}, place, line.end, f"the line {problem}; write one JSON object per line, or delete it")
        else:
            yield Row(value, place, line.end)


def _json(path: Path) -> Iterator[Row]:
    for value, line, position, problem in read_json(path):
        yield Row({} if problem else value, f"{path}:{line}", position, problem and f"the row {problem}; correct it")


def _text(path: Path) -> Iterator[Row]:
    for piece, line, position, goes_on in read_text_pieces(path):
        yield Row({"text": piece}, f"{path}:{line}", position, goes_on=goes_on)


def _table(read: Callable[[Path], Iterator[TableRow]]) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        size = path.stat().st_size
        for values, number, share, problem in read(path):
            value = {} if problem else values
            yield Row(value, f"{path}:{number}", round(share * size), problem and f"the row {problem}; correct it")

    return rows


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table(read_csv),
    ".tsv": _table(read_csv),
    ".parquet": _table(read_parquet),
    ".txt": _text,
}
