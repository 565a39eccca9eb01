"""Lines with wide gaps in them: the cells of a table, or two columns that the file has written line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from glm4.documents.formats.pdf_lines import Line

_LEAST_PROSE_LINES = 4
_PROSE_CHARACTERS = 20
_MARKER = re.compile(r"[•◦▪‣●○■□·–—*-]|\(?\d{1,3}[.)、]|\(?[a-zA-Z][.)]")
Rows = list[list[str]]


def split_prose(lines: Sequence[Line]) -> list[Line] | None:
    """The lines with those that cross the gap between two columns of prose cut there; None if there are none."""
    crossing = [line for line in lines if len(line.cells) == 2]
    prose = [line for line in crossing if all(len(cell.text) >= _PROSE_CHARACTERS for cell in line.cells)]
    if len(prose) < _LEAST_PROSE_LINES or 2 * len(prose) < len(lines):
        return None
    left, right = max(line.cells[0].right for line in prose), min(line.cells[1].left for line in prose)
    if left >= right:
        return None
    parts: list[Line] = []
    for line in lines:
        fits = len(line.cells) == 2 and line.cells[0].right <= right and line.cells[1].left >= left
        parts += line.cells if fits else (line,)
    return parts


def split_tables(lines: Sequence[Line]) -> Iterator[tuple[list[Line], Rows | None]]:
    """The lines in runs, each with the rows of the table that it is, or None for text."""
    text: list[Line] = []
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and _is_row(lines[end]) and (end == at or lines[end].base < lines[end - 1].base):
            end += 1
        rows = _rows(lines[at:end]) if end - at >= 2 else None
        if rows is None:
            text += lines[at : max(end, at + 1)]
        else:
            if text:
                yield text, None
            yield list(lines[at:end]), rows
            text = []
        at = max(end, at + 1)
    if text:
        yield text, None


def _is_row(line: Line) -> bool:
    return len(line.cells) > 2 or (len(line.cells) == 2 and _MARKER.fullmatch(line.cells[0].text) is None)


def _rows(lines: Sequence[Line]) -> Rows | None:
    """Cells by column; columns are where the cells of all lines lie above each other."""
    columns: list[tuple[float, float]] = []
    for left, right in sorted((cell.left, cell.right) for line in lines for cell in line.cells):
        if columns and left < columns[-1][1]:
            columns[-1] = (columns[-1][0], max(columns[-1][1], right))
        else:
            columns.append((left, right))
    if len(columns) < 2:
        return None
    rows: Rows = []
    for line in lines:
        row = [""] * len(columns)
        for cell in line.cells:
            column = next(at for at, (left, right) in enumerate(columns) if left <= cell.left <= right)
            row[column] = f"{row[column]} {cell.text}".strip()
        rows.append(row)
    return rows
