"""`document_from_dict`: a document from JSON that another process made, checked as if a stranger had written it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn, get_args

from glm4.documents.cleaning import is_clean
from glm4.documents.document import Block, Document, Kind
from glm4.documents.formats.table import FORMATS
from glm4.documents.limits import (
    MAX_BLOCKS,
    MAX_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_PAGES,
    MAX_TITLE_CHARACTERS,
    MAX_WARNING_CHARACTERS,
    MAX_WARNINGS,
)

_KINDS = get_args(Kind)
_FIELDS = {"name", "media_type", "digest", "blocks", "title", "num_pages", "warnings", "scanned"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def document_from_dict(value: object) -> Document:
    """A document from what `Document.as_dict` gives.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of its bounds; says which.
    """
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        _refuse("fields")
    num_pages = value["num_pages"]
    if num_pages is not None and not _is_count(num_pages, 0, MAX_PAGES):
        _refuse("num_pages")
    digest, media_type = value["digest"], value["media_type"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        _refuse("digest")
    if not isinstance(media_type, str) or media_type not in FORMATS:
        _refuse("media_type")
    if value["title"] is not None:
        _text(value["title"], MAX_TITLE_CHARACTERS, "title")
    return Document(
        name=_text(value["name"], MAX_NAME_CHARACTERS, "name"),
        media_type=media_type,
        digest=digest,
        blocks=_blocks(value["blocks"], num_pages),
        title=value["title"],
        num_pages=num_pages,
        warnings=_warnings(value["warnings"]),
        scanned=_scanned(value, num_pages),
    )


def _blocks(value: object, num_pages: int | None) -> tuple[Block, ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCKS:
        _refuse("blocks")
    blocks: list[Block] = []
    left, last = MAX_CHARACTERS, 1
    for row in value:
        if not isinstance(row, list) or len(row) != 4:
            _refuse("block")
        text, kind, page, level = row
        left -= len(_text(text, left, "text"))
        if kind not in _KINDS:
            _refuse("kind")
        if not _is_count(level, 1, 6) if kind == "heading" else level != 0 or type(level) is not int:
            _refuse("level")
        if page is not None:
            if num_pages is None or not _is_count(page, last, num_pages):
                _refuse("page")
            last = page
        blocks.append(Block(text, kind, page, level))
    return tuple(blocks)


def _warnings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_WARNINGS:
        _refuse("warnings")
    return tuple(_text(item, MAX_WARNING_CHARACTERS, "warnings") for item in value)


def _scanned(value: Mapping[str, Any], num_pages: int | None) -> tuple[int, ...]:
    pages = value["scanned"]
    if not isinstance(pages, list) or len(pages) > MAX_PAGES:
        _refuse("scanned")
    if not all(_is_count(page, 1, num_pages or 0) for page in pages) or sorted(set(pages)) != pages:
        _refuse("scanned")
    return tuple(pages)


def _text(value: object, at_most: int, field: str) -> str:
    if not isinstance(value, str) or len(value) > at_most or not is_clean(value):
        _refuse(field)
    return value


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _refuse(field: str) -> NoReturn:
    raise ValueError(f"not a document: {field}")
