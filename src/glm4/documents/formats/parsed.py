"""`Parsed`: what a loader fills in; it cleans the text and keeps the limits, so that no loader has to."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

from glm4.documents.cleaning import clean
from glm4.documents.document import Block, Kind
from glm4.documents.limits import (
    MAX_BLOCKS,
    MAX_CHARACTERS,
    MAX_PAGES,
    MAX_TITLE_CHARACTERS,
    MAX_WARNING_CHARACTERS,
    MAX_WARNINGS,
    SOFT_SECONDS,
)

_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


class RefusedError(Exception):
    """A file that is not read; the text continues "FILE …": "is encrypted; remove its password first"."""


class FullError(Exception):
    """A limit is reached: what was read until now is the document."""


class Parsed:
    """Blocks, warnings and facts of a document that is being read.

    Attributes:
        title, num_pages, scanned: as in `Document`.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.warnings: list[str] = []
        self.title: str | None = None
        self.num_pages: int | None = None
        self.scanned: list[int] = []
        self.characters_left = MAX_CHARACTERS
        self._deadline = time.monotonic() + SOFT_SECONDS

    def add(self, text: str, kind: Kind = "paragraph", *, page: int | None = None, level: int = 0) -> None:
        """Append a block, unless it is blank.

        Raises:
            FullError: the document has become too long, or takes too long.
        """
        text = clean(text)
        if kind == "heading":
            text = " ".join(text.split()).lstrip("# ")
            level = min(max(level, 1), 6)
        elif kind == "code":
            text = text.strip("\n").rstrip()
        else:
            text = _BLANK_LINES.sub("\n", text).strip()
        if not text:
            return
        self.check_time()
        if len(text) >= self.characters_left or len(self.blocks) >= MAX_BLOCKS:
            if len(self.blocks) < MAX_BLOCKS and kind in ("paragraph", "code"):
                self.blocks.append(Block(text[: self.characters_left - 1], kind, page))
            raise FullError(
                f"only the first {MAX_CHARACTERS - self.characters_left:,} characters were read; it has more"
            )
        self.characters_left -= len(text) + 8
        self.blocks.append(Block(text, kind, page, level if kind == "heading" else 0))

    def add_table(self, rows: Sequence[Sequence[str]], *, page: int | None = None) -> None:
        """Append a table, unless it is empty; its first row is its header."""
        self.add(pipe_table(rows), "table", page=page)

    def check_time(self) -> None:
        """Raise FullError if the document takes too long."""
        if time.monotonic() > self._deadline:
            where = f" on page {self.blocks[-1].page}" if self.blocks and self.blocks[-1].page else ""
            raise FullError(f"reading stopped{where} after {SOFT_SECONDS} seconds; the rest was left out")

    def warn(self, text: str) -> None:
        """Tell the user about something that could not be read; repetitions and floods are dropped."""
        text = " ".join(clean(text).split())
        if len(text) > MAX_WARNING_CHARACTERS:
            text = text[: MAX_WARNING_CHARACTERS - 1] + "…"
        if text not in self.warnings and len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)

    def set_title(self, title: object) -> None:
        """The document's own title, if it is one."""
        if isinstance(title, str) and (text := " ".join(clean(title).split())):
            self.title = text[:MAX_TITLE_CHARACTERS]

    def pages(self, count: int, word: str = "pages") -> range:
        """Numbers of the pages to read, from 1; sets `num_pages` and warns if some are left out."""
        self.num_pages = count
        if count > MAX_PAGES:
            self.num_pages = MAX_PAGES
            self.warn(f"only the first {MAX_PAGES:,} of {count:,} {word} were read")
        return range(1, self.num_pages + 1)


def pipe_table(rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; "" without a filled cell. Rows may differ in length; empty rows and columns are dropped."""
    cells = [[_cell(text) for text in row] for row in rows]
    cells = [row for row in cells if any(row)]
    width = max(map(len, cells), default=0)
    cells = [row + [""] * (width - len(row)) for row in cells]
    kept = [at for at in range(width) if any(row[at] for row in cells)]
    lines = ["| " + " | ".join(row[at] for at in kept) + " |" for row in cells]
    return "\n".join([*lines[:1], "|" + " --- |" * len(kept), *lines[1:]]) if lines else ""


def _cell(text: str) -> str:
    return " ".join(clean(text).split()).replace("|", "\\|")
