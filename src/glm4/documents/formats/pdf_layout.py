"""From lines with places to paragraphs: reading order, columns, hyphens, headings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from glm4.documents.formats.pdf_lines import Line
from glm4.documents.formats.pdf_tables import split_prose
from glm4.documents.formats.plain import CHAPTER

_WIDE = 0.6  # of the page's text: a line that spans columns
_HEADING = 1.18  # times the size of the body
_MOST_HEADING = 160
_END = re.compile(r"""[.!?:;。！？：；…][”’"')）】」』]*$""")
_ITEM = re.compile(
    r"(?:[•◦▪‣●○■□·–—*-]|\(?\d{1,3}[.)、]|\(?[a-zA-Z][.)]|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)\s*\S"
)
_EAST_ASIAN = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
_LEADERS = re.compile(r"[.·…]\s?[.·…]|…|[\u4e00-\u9fff]\s+\d+$")  # of a table of contents
_COMPOUND = re.compile(r"\w+-\w+")


@dataclass(frozen=True)
class Paragraph:
    """Lines that belong together, joined."""

    text: str
    size: float
    num_lines: int
    kind: Literal["paragraph", "list"]


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """The file's order where it runs down the page, and then down the next column; else columns found by their gaps."""
    parts = split_prose(lines)
    if parts is not None:
        return _by_columns(parts)
    jumps = sum(
        later.base > earlier.base + 0.5 * later.size and later.left < earlier.right
        for earlier, later in pairwise(lines)
    )
    return list(lines) if jumps <= 1 + len(lines) // 50 else _by_columns(lines)


def _by_columns(lines: Sequence[Line], depth: int = 0) -> list[Line]:
    """Bands between lines that span the page; in each band, columns from left to right."""
    width = max(line.right for line in lines) - min(line.left for line in lines)
    ordered: list[Line] = []
    band: list[Line] = []
    for line in sorted(lines, key=lambda line: (-round(line.base), line.left)):
        if line.right - line.left > _WIDE * width:
            ordered += _columns(band, depth)
            band = []
            ordered.append(line)
        else:
            band.append(line)
    return ordered + _columns(band, depth)


def _columns(band: Sequence[Line], depth: int) -> list[Line]:
    """Split at the first gap that no line crosses, with at least two lines on either side."""
    if depth > 4 or len(band) < 4:
        return list(band)
    by_left = sorted(band, key=lambda line: line.left)
    reach = by_left[0].right
    for at, line in enumerate(by_left[1:], 1):
        if line.left > reach + 0.3 * line.size and at >= 2 and len(by_left) - at >= 2:
            left = sorted(by_left[:at], key=lambda line: (-round(line.base), line.left))
            rest = sorted(by_left[at:], key=lambda line: (-round(line.base), line.left))
            return left + _columns(rest, depth + 1)
        reach = max(reach, line.right)
    return list(band)


def paragraphs(lines: Sequence[Line], body: float) -> list[Paragraph]:
    """Lines in reading order, joined where a paragraph goes on."""
    steps = [a.base - b.base for a, b in pairwise(lines) if 0 < a.base - b.base < 4 * a.size]
    leading = median(steps) if steps else body
    right = max((line.right for line in lines), default=0.0)
    compounds = {word for line in lines for word in _COMPOUND.findall(line.text)}
    made: list[Paragraph] = []
    group: list[Line] = []
    for line in lines:
        if group and _breaks(group, line, leading, right):
            made.append(_joined(group, compounds))
            group = []
        group.append(line)
    return [*made, _joined(group, compounds)] if group else made


def is_heading(paragraph: Paragraph, body: float) -> int:
    """Level of a heading by its size or by its words, 0 for none."""
    if paragraph.num_lines == 1 and CHAPTER.fullmatch(paragraph.text) and not _LEADERS.search(paragraph.text):
        return 1
    if len(paragraph.text) > _MOST_HEADING or paragraph.size < _HEADING * body or not re.search(r"\w", paragraph.text):
        return 0
    ratio = paragraph.size / body
    return 1 if ratio >= 1.7 else 2 if ratio >= 1.35 else 3


def _breaks(group: Sequence[Line], line: Line, leading: float, right: float) -> bool:
    last = group[-1]
    if abs(line.size - last.size) > 0.12 * max(line.size, last.size):
        return True
    if _ITEM.match(line.text) and (line.left <= group[0].left + 0.5 * line.size or _ITEM.match(group[0].text)):
        return True
    step = last.base - line.base
    if step < 0:  # the next column
        return _END.search(last.text) is not None
    if step > 1.4 * leading and step > 1.2 * line.size:
        return True
    if line.left - last.left > 0.8 * line.size and len(group) > 1:  # the first line is indented
        return True
    short = last.right < right - 6 * line.size and last.right < line.right - 2 * line.size
    return short and _END.search(last.text) is not None


def _joined(group: Sequence[Line], compounds: set[str]) -> Paragraph:
    text = group[0].text
    for line in group[1:]:
        text = _join(text, line.text, compounds, hyphenated=text.endswith("-"))
    kind: Literal["paragraph", "list"] = "list" if _ITEM.match(text) and text[0] in "•◦▪‣●○■□·" else "paragraph"
    return Paragraph(text, group[0].size, len(group), kind)


def _join(text: str, more: str, compounds: set[str], *, hyphenated: bool) -> str:
    if hyphenated and len(text) > 1 and text[-2].isalpha() and more[0].islower():
        head = re.search(r"\w+-$", text)
        tail = re.match(r"\w+", more)
        if head and tail and head[0] + tail[0] in compounds:
            return text + more
        return text[:-1] + more
    if hyphenated and len(text) > 1 and text[-2].isalnum() and more[0].isalnum():
        return text + more
    if _EAST_ASIAN.match(text[-1]) and _EAST_ASIAN.match(more[0]):
        return text + more
    return f"{text} {more}"
