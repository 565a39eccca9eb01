"""The table of formats, which format rows are in, and reading a row by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from glm4.errors import Glm4Error, InvalidRequestError, TrainingDataError, shown
from glm4.training.data.examples import Example, TextExample
from glm4.training.data.formats.alpaca import read_alpaca
from glm4.training.data.formats.columns import Columns
from glm4.training.data.formats.messages import read_messages
from glm4.training.data.formats.preference import read_preference
from glm4.training.data.formats.row_values import Setting, from_json
from glm4.training.data.formats.sharegpt import read_sharegpt
from glm4.training.data.formats.text import read_plain_text
from glm4.training.data.rows import Row

Reader = Callable[[Mapping[str, Any], Setting, str], Example]


def read_example(row: Row, reader: Reader, setting: Setting) -> Example:
    """The example of a row.

    Raises:
        TrainingDataError: the row cannot be used; says where it is, why, and what to do.
    """
    if row.problem:
        raise TrainingDataError(row.problem, place=row.place)
    try:
        example = reader(row.value, setting, row.place)
    except TrainingDataError:
        raise
    except Glm4Error as error:
        raise TrainingDataError(str(error), place=row.place) from None
    except RecursionError:
        raise TrainingDataError("the row is nested too deeply", place=row.place) from None
    return replace(example, ends=False) if row.goes_on and isinstance(example, TextExample) else example


def find_format(rows: Sequence[Mapping[str, Any]], columns: Columns, name: str) -> str:
    """The format of a file by its first rows.

    Args:
        name: of the file, for errors.

    Raises:
        TrainingDataError: the fields are those of no format.
    """
    for row in rows:
        for format_, needs in _needs(columns):
            if all(row.get(field) is not None for field in needs):
                return format_ if format_ != "messages" else _words(row[needs[0]], columns)
    if not rows:  # all are broken, and each says why
        return next(iter(FORMATS))
    fields = ", ".join(map(shown, rows[0])) or "nothing"
    raise TrainingDataError(
        f"cannot tell the format of {name}: its rows have {fields}; set format to one of {', '.join(FORMATS)}, and name"
        " its fields with columns if they are called otherwise"
    )


def _needs(columns: Columns) -> list[tuple[str, tuple[str, ...]]]:
    """The fields that tell a format, in the order in which they are looked for."""
    return [
        ("preference", ("preferred_output", "non_preferred_output")),
        ("preference", (columns.chosen, columns.rejected)),
        ("messages", (columns.messages or "messages",)),
        ("messages", (columns.messages or "conversations",)),
        ("alpaca", (columns.instruction, columns.output)),
        ("text", (columns.text,)),
    ]


def _words(turns: Any, columns: Columns) -> str:
    """In which words turns are told: of "messages", or of "sharegpt"."""
    with contextlib.suppress(InvalidRequestError):  # broken JSON; reading says so
        turns = from_json(turns, "")
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    is_share = isinstance(first, Mapping) and "role" not in first and (columns.role or "from") in first
    return "sharegpt" if is_share else "messages"


FORMATS: dict[str, Reader] = {
    "messages": read_messages,
    "original": read_messages,
    "openai": read_messages,
    "sharegpt": read_sharegpt,
    "alpaca": read_alpaca,
    "text": read_plain_text,
    "preference": read_preference,
}
