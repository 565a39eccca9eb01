"""`Document`: the text of a file, whatever its format, with places that can be cited."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Kind = Literal["heading", "paragraph", "list", "table", "code", "caption", "note"]
UNSEEN = "without text: pictures, which only a model that sees can read"
"""How the warning about scanned pages ends."""
SEPARATOR = "\n\n"
"""Between the blocks of a document's text."""


@dataclass(frozen=True)
class Block:
    """A piece of a document that belongs together.

    Attributes:
        text: as Markdown: tables as pipe tables, headings without their marks.
        page: counted from 1; None where the format has no pages. The slide of a presentation, the sheet of a workbook.
        level: of a heading, 1 to 6; 0 otherwise.
    """

    text: str
    kind: Kind = "paragraph"
    page: int | None = None
    level: int = 0

    def as_list(self) -> list[Any]:
        """[text, kind, page, level]: as JSON, without the names that a long document would repeat."""
        return [self.text, self.kind, self.page, self.level]


@dataclass(frozen=True)
class Place:
    """Where in a document something stands.

    Attributes:
        section: the heading above it, if there is one.
    """

    block: int
    page: int | None
    section: str | None


@dataclass(frozen=True)
class Document:
    """A file as a model reads it.

    Attributes:
        name: the file's name, for people.
        media_type: what the file really is, found by its content.
        digest: sha256 of the file in hexadecimal.
        num_pages: pages, slides or sheets; None where the format has none.
        warnings: what could not be read, in words for the user: "page 3 is a picture without text".
        scanned: pages without text, counted from 1, which only a model that sees can read.
    """

    name: str
    media_type: str
    digest: str
    blocks: tuple[Block, ...]
    title: str | None = None
    num_pages: int | None = None
    warnings: tuple[str, ...] = ()
    scanned: tuple[int, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for stores; `stored_document.document_from_dict` is the way back."""
        return {
            "name": self.name, "media_type": self.media_type, "digest": self.digest, "title": self.title,
            "num_pages": self.num_pages, "warnings": list(self.warnings), "scanned": list(self.scanned),
            "blocks": [block.as_list() for block in self.blocks],
        }  # fmt: skip

    @cached_property
    def text(self) -> str:
        """The whole text; `starts` says where each block begins."""
        return SEPARATOR.join(_shown(block) for block in self.blocks)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first character of each block in `text`."""
        starts, at = [], 0
        for block in self.blocks:
            starts.append(at)
            at += len(_shown(block)) + len(SEPARATOR)
        return tuple(starts)

    @cached_property
    def sections(self) -> tuple[str | None, ...]:
        """The heading above each block, or the block itself if it is one."""
        found: list[str | None] = []
        for block in self.blocks:
            found.append(block.text if block.kind == "heading" else found[-1] if found else None)
        return tuple(found)

    def place(self, offset: int) -> Place:
        """Where the character of `text` at `offset` stands."""
        if not self.blocks:
            return Place(0, None, None)
        index = max(0, bisect_right(self.starts, offset) - 1)
        return Place(index, self.blocks[index].page, self.sections[index])


def listed_pages(numbers: Sequence[int]) -> str:
    """Pages for people; of many only the first are named."""
    shown = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
    return f"page {shown}" if len(numbers) == 1 else f"{len(numbers)} pages ({shown})"


def _shown(block: Block) -> str:
    return f"{'#' * block.level} {block.text}" if block.kind == "heading" else block.text
