"""Long tables as blocks of bounded length, each with the header."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glm4.documents.formats.parsed import Parsed

MAX_ROWS = 20_000
MAX_COLUMNS = 200
_ROWS_PER_BLOCK = 100
_CELL_CHARACTERS = 10_000


def add_rows(parsed: Parsed, rows: Iterable[Sequence[str]], *, what: str, page: int | None = None) -> None:
    """Append a table; of a long one, every block begins with the first row, so that each can be read alone.

    Args:
        what: the table's name, for warnings about what is left out.
    """
    header: Sequence[str] | None = None
    block: list[Sequence[str]] = []
    for at, row in enumerate(row for row in rows if any(cell.strip() for cell in row)):
        if at >= MAX_ROWS:
            parsed.warn(f"{what}: only the first {MAX_ROWS:,} rows were read")
            break
        if len(row) > MAX_COLUMNS:
            parsed.warn(f"{what}: only the first {MAX_COLUMNS} columns were read")
        kept = [cell[:_CELL_CHARACTERS] for cell in row[:MAX_COLUMNS]]
        if header is None:
            header = kept
            continue
        block.append(kept)
        if len(block) == _ROWS_PER_BLOCK:
            parsed.add_table([header, *block], page=page)
            block = []
    if header is not None and (block or at == 0):
        parsed.add_table([header, *block], page=page)
