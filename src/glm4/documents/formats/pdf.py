"""PDF: text by page through PDFium, in reading order, without running headers; scanned pages are listed.

JavaScript, forms, attachments, links and annotations are not looked at: PDFium's form module is never started.

Not covered: text drawn as lines or pictures; cells of tables with several lines; right-to-left order is PDFium's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glm4.documents.document import UNSEEN, listed_pages
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import FullError, Parsed, RefusedError
from glm4.documents.formats.pdf_layout import in_reading_order, is_heading, paragraphs
from glm4.documents.formats.pdf_lines import Line
from glm4.documents.formats.pdf_tables import split_tables
from glm4.documents.formats.pdf_text import page_lines
from glm4.documents.limits import MAX_CHARACTERS

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

_FEW_CHARACTERS = 16
_MARGIN_LINES = 2
_LEAST_PAGES = 4
_LEAST_SHARE = 0.45
_MOST_RUNNING = 120  # characters
_APART = 1.7  # times its size
_MOST_BOOKMARKS = 5000
_ERROR_PASSWORD = 4
_ERROR_SECURITY = 5
_NUMBERS = re.compile(r"\d+|(?<!\w)[ivxlc]+(?!\w)")
_MAGIC = b"%PDF-"


def load(content: Content, parsed: Parsed) -> None:
    """Read a PDF document."""
    with open_pdf(content.data) as document:
        metadata = document.get_metadata_dict(skip_empty=True)
        parsed.set_title(metadata.get("Title"))
        numbers = parsed.pages(len(document))
        pages: list[list[Line]] = []
        stopped = _read_pages(document, numbers, pages, parsed)
        outline = _outline(document, parsed)
    running = _running_lines(pages)
    body = _body_size(pages)
    for number, lines in enumerate(pages, 1):
        kept = [line for line in lines if line.running_key not in running]
        for run, rows in split_tables(in_reading_order(kept)):
            if rows is not None:
                parsed.add_table(rows, page=number)
                continue
            for paragraph in paragraphs(run, body):
                level = outline.get((number, _squeezed(paragraph.text)), 0) or is_heading(paragraph, body)
                parsed.add(paragraph.text, "heading" if level else paragraph.kind, page=number, level=level)
    if stopped is not None:
        raise stopped


def open_pdf(data: bytes) -> PdfDocument:
    """A document of PDFium, to be closed.

    Raises:
        RefusedError: it is encrypted, damaged or has no page.
    """
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        return PdfDocument(data[data.index(_MAGIC) :])
    except PdfiumError as error:
        if error.err_code == _ERROR_PASSWORD:
            raise RefusedError("is encrypted and needs a password; remove the password first") from None
        if error.err_code == _ERROR_SECURITY:
            raise RefusedError("is encrypted in a way that is not supported; save it without encryption") from None
        raise RefusedError("is a damaged or truncated PDF file; save it again") from None


def _read_pages(
    document: PdfDocument, numbers: Sequence[int], pages: list[list[Line]], parsed: Parsed
) -> FullError | None:
    """Fill `pages`; gives why the reading stopped early."""
    from pypdfium2 import PdfiumError

    characters = 0
    damaged = []
    for number in numbers:
        try:
            parsed.check_time()
        except FullError:
            return FullError(f"reading stopped before page {number:,} of {len(document):,}, as it takes too long")
        if characters > MAX_CHARACTERS:
            return FullError(f"only the first {number - 1:,} of {len(document):,} pages were read; it is too long")
        try:
            page = document[number - 1]
            lines, readable = page_lines(page)
        except PdfiumError:
            damaged.append(number)
            pages.append([])
            continue
        visible = sum(len(line.text) for line in lines)
        characters += visible
        if visible < _FEW_CHARACTERS or not readable:
            if not readable or _has_picture(page, any_drawing=not visible):
                parsed.scanned.append(number)
            if not readable:
                parsed.warn(f"page {number}: its fonts do not tell which characters they show")
                lines = []
        pages.append(lines)
        page.close()
    if damaged:
        parsed.warn(f"{listed_pages(damaged)} cannot be read, as the file is damaged there")
    if len(damaged) == len(numbers):
        raise RefusedError("is a damaged PDF file: none of its pages can be read")
    if parsed.scanned:
        parsed.warn(f"{listed_pages(parsed.scanned)} {UNSEEN}")
    return None


def _has_picture(page: PdfPage, *, any_drawing: bool) -> bool:
    """Whether a page without text has a picture; or anything drawn, as letters may be outlines."""
    from pypdfium2.raw import FPDF_PAGEOBJ_FORM, FPDF_PAGEOBJ_IMAGE, FPDF_PAGEOBJ_PATH, FPDF_PAGEOBJ_SHADING

    wanted = [FPDF_PAGEOBJ_IMAGE, FPDF_PAGEOBJ_FORM]
    if any_drawing:
        wanted += [FPDF_PAGEOBJ_PATH, FPDF_PAGEOBJ_SHADING]
    return any(True for _ in page.get_objects(filter=wanted, max_depth=1))


def _outline(document: PdfDocument, parsed: Parsed) -> dict[tuple[int, str], int]:
    """Levels of the headings that the bookmarks name, by page and title."""
    levels: dict[tuple[int, str], int] = {}
    for at, bookmark in enumerate(document.get_toc(max_depth=6)):
        if at >= _MOST_BOOKMARKS:
            break
        parsed.check_time()
        target = bookmark.get_dest()
        page = target.get_index() if target else None
        title = _squeezed(bookmark.get_title() or "")
        if page is not None and title:
            levels.setdefault((page + 1, title), min(bookmark.level + 1, 6))
    return levels


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def _running_lines(pages: Sequence[Sequence[Line]]) -> frozenset[str]:
    """Keys of lines that repeat at the top or bottom of most pages: headers, footers, page numbers.

    Sets `running_key` of the lines that can be such. Odd and even pages may differ, so half of the pages are most.
    """
    with_text = [page for page in pages if page]
    counts: Counter[str] = Counter()
    body = _body_size(pages)
    for page in with_text:
        from_top = sorted(page, key=lambda line: -line.base)
        for edge, ordered in (("top", from_top), ("bottom", from_top[::-1])):
            for at, line in enumerate(ordered[:_MARGIN_LINES]):
                if line.size <= 1.1 * body and len(line.text) <= _MOST_RUNNING:
                    after = ordered[at + 1 : at + 2]
                    apart = bool(after) and abs(line.base - after[0].base) > _APART * line.size
                    line.running_key = _running_key(line, edge, apart=apart)
        counts.update({line.running_key for line in page if line.running_key})
    least = max(_LEAST_PAGES, _LEAST_SHARE * len(with_text))
    return frozenset(key for key, count in counts.items() if count >= least)


def _running_key(line: Line, edge: str, *, apart: bool) -> str:
    """The same for lines with the same text at the same height; numbers may differ where the line stands apart."""
    text = _squeezed(line.text)
    return f"{edge} {round(line.base / 4)} {_NUMBERS.sub('#', text) if apart else text}"


def _body_size(pages: Sequence[Sequence[Line]]) -> float:
    """The size in which most characters are set; 0 for a document without text."""
    sizes: Counter[float] = Counter()
    for page in pages:
        for line in page:
            sizes[round(2 * line.size) / 2] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0
