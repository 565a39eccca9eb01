"""The table of formats, which format rows are in, and reading a row by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm4.errors import Glm4Error, TrainingDataError, shown
from glm4.training.data.examples import Example
from glm4.training.data.formats.columns import Columns
from glm4.training.data.formats.messages import read_messages
from glm4.training.data.formats.row_values import Setting
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
        return reader(row.value, setting, row.place)
    except TrainingDataError:
        raise
    except Glm4Error as error:
        raise TrainingDataError(str(error), place=row.place) from None


def find_format(rows: Sequence[Mapping[str, Any]], columns: Columns, name: str) -> str:
    """The format of a file by its first rows.

    Args:
        name: of the file, for errors.

    Raises:
        TrainingDataError: the fields are those of no format.
    """
    for row in rows:
        for format_, needs in _needs(columns).items():
            if all(row.get(field) is not None for field in needs):
                return format_
    if not rows:  # all are broken, and each says why
        return next(iter(FORMATS))
    fields = ", ".join(map(shown, rows[0])) or "nothing"
    raise TrainingDataError(
        f"cannot tell the format of {name}: its rows have {fields}; set format to one of {', '.join(FORMATS)}, and name"
        " its fields with columns if they are called otherwise"
    )


def _needs(columns: Columns) -> dict[str, tuple[str, ...]]:
    """The fields that tell a format, in the order in which they are looked for."""
    return {
        "openai": (columns.messages or "messages",),
    }


FORMATS: dict[str, Reader] = {
    "original": read_messages,
    "openai": read_messages,
}
