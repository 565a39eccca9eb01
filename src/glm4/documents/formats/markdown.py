"""Markdown: headings, fenced code, tables, lists and paragraphs; inline marks stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from glm4.documents.cleaning import clean
from glm4.documents.document import Kind
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import Parsed

_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+\S")
_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")


def load(content: Content, parsed: Parsed) -> None:
    """Read a Markdown file; its first heading of the first level is its title."""
    add_markdown(content.text, parsed)
    first = next((block for block in parsed.blocks if block.kind == "heading" and block.level == 1), None)
    parsed.set_title(first.text if first else None)


def add_markdown(text: str, parsed: Parsed) -> None:
    """Append the blocks of a Markdown text."""
    lines = clean(text).split("\n")
    if lines[0].strip() == "---":  # facts about the page, in YAML
        end = next((at for at, line in enumerate(lines[1:60], 1) if line.strip() in ("---", "...")), None)
        if end is not None:
            parsed.add("\n".join(lines[1:end]), "code")
            lines = lines[end + 1 :]
    for kind, level, block in _blocks(lines):
        parsed.add("\n".join(block), kind, level=level)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[Kind, int, Sequence[str]]]:
    group: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        fence, heading = _FENCE.match(line), _HEADING.fullmatch(line)
        underline = (
            re.fullmatch(r" {0,3}(=+|-{2,})\s*", line) if len(group) == 1 and not _ITEM.match(group[0]) else None
        )
        if fence or heading or not line.strip():
            yield from _text(group)
            group = []
        if fence:
            end = next((to for to in range(at + 1, len(lines)) if _closes(lines[to], fence[1])), len(lines))
            yield "code", 0, lines[at + 1 : end]
            at = end
        elif heading:
            yield "heading", len(heading[1]), [heading[2] or ""]
        elif underline and "|" not in group[0]:
            yield "heading", 1 if underline[1][0] == "=" else 2, group
            group = []
        elif line.strip():
            group.append(line)
        at += 1
    yield from _text(group)


def _closes(line: str, fence: str) -> bool:
    mark = line.strip()
    return mark.startswith(fence) and not mark.strip(fence[0])


def _text(group: Sequence[str]) -> Iterator[tuple[Kind, int, Sequence[str]]]:
    """Lines without a blank one between them: a table, a list or a paragraph."""
    if len(group) > 1 and "|" in group[0] and _RULE.fullmatch(group[1]):
        yield "table", 0, group
    elif group:
        yield "list" if _ITEM.match(group[0]) else "paragraph", 0, group
