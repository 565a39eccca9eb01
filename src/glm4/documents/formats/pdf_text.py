"""The lines of a PDF page with their places, from PDFium's characters."""

from __future__ import annotations

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glm4.documents.cleaning import clean
from glm4.documents.formats.pdf_lines import Line

if TYPE_CHECKING:
    from pypdfium2 import PdfPage, PdfTextPage

_HYPHENS = ("\ufffe", "\x02")  # what PDFium gives for a hyphen at the end of a line, together with the line's end
_LINES = re.compile("([^\n\ufffe\x02]*)([\n\ufffe\x02]?)")
_SPACES = re.compile(r"\s+")
_GAP = 1.3  # times the size: a space is 0.3, and in justified lines rarely more than 1
_SAMPLES = 20
_MOST_CHARACTERS = 500_000
_MOST_UNREADABLE = 0.3


def page_lines(page: PdfPage) -> tuple[list[Line], bool]:
    """The lines of a page in the order of the file, and whether their characters can be told.

    Raises:
        pypdfium2.PdfiumError: the page is damaged.
    """
    text_page = page.get_textpage()
    try:
        count = min(text_page.count_chars(), _MOST_CHARACTERS)
        text = text_page.get_text_range(0, count) if count else ""
        turn = _direction(text_page, count)
        lines: list[Line] = []
        beyond = max(text, default="") > "\uffff"  # characters that count twice for PDFium
        for piece in _LINES.finditer(text):
            stripped = piece[1].strip()
            if stripped:
                first = piece.start() + len(piece[1]) - len(piece[1].lstrip())
                first += sum(char > "\uffff" for char in text[:first]) if beyond else 0
                line = _line(text_page, stripped + "-" * (piece[2] in _HYPHENS), first, turn)
                if line is not None:
                    lines.append(line)
        tried, unreadable = _unreadable(text_page, count)
    finally:
        text_page.close()
    return lines, not text.strip() or unreadable <= _MOST_UNREADABLE * max(1, tried)


def _unreadable(text_page: PdfTextPage, count: int) -> tuple[int, int]:
    """(characters tried, those of which PDFium does not know what they are), by a sample."""
    from pypdfium2 import raw

    tried = unreadable = 0
    for index in range(0, count, max(1, count // (10 * _SAMPLES))):
        char = chr(raw.FPDFText_GetUnicode(text_page, index) & 0xFFFF)
        if char.isspace() or raw.FPDFText_IsGenerated(text_page, index):
            continue
        tried += 1
        unknown = raw.FPDFText_HasUnicodeMapError(text_page, index) == 1
        unreadable += unknown or char in "\0\ufffd" or "\ue000" <= char <= "\uf8ff"
    return tried, unreadable


def _line(text_page: PdfTextPage, text: str, first: int, turn: _Turn) -> Line | None:
    """A line; its size and base line are those of the character in its middle, as bullets have fonts of their own."""
    from pypdfium2 import raw

    shown = " ".join(clean(text).split())
    if not shown:
        return None
    start, middle, end = (_char_index(text_page, at) for at in (first, first + len(text) // 2, first + len(text) - 1))
    matrix = raw.FS_MATRIX()
    size = raw.FPDFText_GetFontSize(text_page, middle)
    if raw.FPDFText_GetMatrix(text_page, middle, ctypes.byref(matrix)):
        size *= math.hypot(matrix.c, matrix.d)
    x, y = ctypes.c_double(), ctypes.c_double()
    raw.FPDFText_GetCharOrigin(text_page, middle, ctypes.byref(x), ctypes.byref(y))
    base = turn.point(x.value, y.value)[1]
    left, right = _extent(text_page, start, end, turn)
    if not all(map(math.isfinite, (left, right, base, size))):
        left = right = base = size = 0.0
    size = abs(size)
    cells: list[Line] = []
    if raw.FPDFText_CountRects(text_page, start, end + 1 - start) > 1:
        for cell_text, cell_start, cell_end in _cells(text_page, text, first, size, turn):
            shown_cell = " ".join(clean(cell_text).split())
            if shown_cell:
                cells.append(Line(shown_cell, *_extent(text_page, cell_start, cell_end, turn), base, size))
    return Line(shown, left, right, base, size, tuple(cells) if len(cells) > 1 else ())


def _cells(text_page: PdfTextPage, text: str, first: int, size: float, turn: _Turn) -> Iterator[tuple[str, int, int]]:
    """(text, first, last character) of the parts of a line between which there is more than a space."""
    begin = 0
    for space in _SPACES.finditer(text):
        before, after = (_char_index(text_page, first + at) for at in (space.start() - 1, space.end()))
        if _extent(text_page, after, after, turn)[0] - _extent(text_page, before, before, turn)[1] > _GAP * size:
            yield text[begin : space.start()], _char_index(text_page, first + begin), before
            begin = space.end()
    end = _char_index(text_page, first + len(text) - 1)
    yield text[begin:], _char_index(text_page, first + begin), end


def _extent(text_page: PdfTextPage, start: int, end: int, turn: _Turn) -> tuple[float, float]:
    """Left and right edge of what lies between two characters."""
    box, last = _box(text_page, start), _box(text_page, end)
    xs = [turn.point(*corner)[0] for corner in (box[:2], box[2:], last[:2], last[2:])]
    return min(xs), max(xs)


def _char_index(text_page: PdfTextPage, at: int) -> int:
    from pypdfium2 import raw

    index = raw.FPDFText_GetCharIndexFromTextIndex(text_page, at)
    return at if index < 0 else index


def _box(text_page: PdfTextPage, index: int) -> tuple[float, float, float, float]:
    from pypdfium2 import raw

    rectangle = raw.FS_RECTF()
    raw.FPDFText_GetLooseCharBox(text_page, index, ctypes.byref(rectangle))
    return rectangle.left, rectangle.bottom, rectangle.right, rectangle.top


class _Turn:
    """Turns points of a page so that text that runs at this angle runs from left to right."""

    def __init__(self, degrees: int) -> None:
        self.degrees = degrees

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is after the turn; only differences matter."""
        if self.degrees == 90:
            return y, -x
        if self.degrees == 180:
            return -x, -y
        return (-y, x) if self.degrees == 270 else (x, y)


def _direction(text_page: PdfTextPage, count: int) -> _Turn:
    """In which direction most of the text runs; the rotation of a page says nothing about it."""
    from pypdfium2 import raw

    seen: Counter[int] = Counter()
    for index in range(0, count, max(1, count // _SAMPLES)):
        matrix = raw.FS_MATRIX()
        if raw.FPDFText_GetMatrix(text_page, index, ctypes.byref(matrix)) and math.isfinite(matrix.a + matrix.b):
            seen[round(math.atan2(matrix.b, matrix.a) / (math.pi / 2)) % 4 * 90] += 1
    return _Turn(seen.most_common(1)[0][0] if seen else 0)
