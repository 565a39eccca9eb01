"""Word documents: headings, lists, tables in place, text boxes, footnotes; deleted text of tracked changes is left out.

Macros and embedded files are not looked at, links to other files never followed. There are no pages: only Word knows
where they break.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glm4.documents.formats.archive import check_office_xml, open_archive
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import Parsed, RefusedError

if TYPE_CHECKING:
    from docx.document import Document as WordDocument

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_MAIN_TYPES = (
    "application/vnd.ms-word.document.macroEnabled.main+xml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
)
_HEADING = re.compile(r"heading ([1-9])")
_CONTAINERS = frozenset(_W + name for name in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag"))
_LEFT_OUT = frozenset(
    [*(_W + name for name in ("del", "moveFrom", "txbxContent", "pPr", "rPr", "instrText")), _FALLBACK]
)
_CHARACTERS = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}
_NOTES = {"footnotes": "footnote", "endnotes": "endnote"}


def load(content: Content, parsed: Parsed) -> None:
    """Read a Word document."""
    check_office_xml(open_archive(content.data))
    document = _open(content.data)
    parsed.set_title(document.core_properties.title)
    reader = _Reader(document, parsed)
    reader.read(document.element.body)
    reader.read_notes()


def _open(data: bytes) -> WordDocument:
    import docx
    from docx.opc.part import PartFactory
    from docx.parts.document import DocumentPart

    for content_type in _MAIN_TYPES:
        PartFactory.part_type_for[content_type] = DocumentPart
    try:
        part = docx.package.Package.open(io.BytesIO(data)).main_document_part
        if not isinstance(part, DocumentPart):
            raise RefusedError("is damaged: its main part is not a Word document")
        document: WordDocument = part.document
    except (KeyError, ValueError, OSError) as error:
        raise RefusedError(f"is a damaged Word document ({error}); save it again") from None
    return document


class _Reader:
    """Walks through the body; python-docx gives styles and numbering, but skips text boxes, changes and controls."""

    def __init__(self, document: WordDocument, parsed: Parsed) -> None:
        self._parsed = parsed
        self._document = document
        self._styles = {style.style_id: style for style in document.styles}
        self._numbers = _number_formats(document)
        self._counts: Counter[tuple[str, int]] = Counter()
        self._items: list[str] = []

    def read(self, parent: Any) -> None:
        """Append what stands in an element, in order."""
        self._read(parent)
        self._end_list()

    def read_notes(self) -> None:
        """Append footnotes and endnotes, as the text refers to them."""
        from docx.oxml import parse_xml

        for relation in self._document.part.rels.values():
            kind = _NOTES.get(relation.reltype.rpartition("/")[2])
            if kind is None or relation.is_external:
                continue
            for note in parse_xml(relation.target_part.blob):
                if note.get(_W + "type") is None:  # no separator
                    text = " ".join(_text(paragraph).strip() for paragraph in note.iter(_W + "p"))
                    self._parsed.add(
                        f"[^{_note_name(note.get(_W + 'id'), kind)}]: {text.strip()}" if text.strip() else "", "note"
                    )

    def _read(self, parent: Any) -> None:
        for child in parent:
            if child.tag == _W + "p":
                self._paragraph(child)
            elif child.tag == _W + "tbl":
                self._end_list()
                self._parsed.add_table(list(_rows(child)))
            elif child.tag in _CONTAINERS:
                self._read(child)

    def _paragraph(self, paragraph: Any) -> None:
        text = _text(paragraph)
        level, item = self._heading_level(paragraph), None
        if text.strip() and not level:
            item = self._list_mark(paragraph)
        if item is not None:
            self._items.append(item + " ".join(text.split()))
        elif text.strip():
            self._end_list()
            self._parsed.add(text, "heading" if level else "paragraph", level=level)
        for box in paragraph.iter(_W + "txbxContent"):
            if next(box.iterancestors(_FALLBACK), None) is None:
                self._end_list()
                self._read(box)

    def _end_list(self) -> None:
        items, self._items = self._items, []
        self._parsed.add("\n".join(items), "list")

    def _heading_level(self, paragraph: Any) -> int:
        own = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
        if own is not None:
            return _outline_level(own)
        style = self._style(paragraph)
        for _ in range(10):  # styles may be based on each other in a circle
            if style is None:
                return 0
            name = (style.name or "").lower()
            if (match := _HEADING.fullmatch(name)) is not None:
                return int(match[1])
            if name == "title":
                return 1
            outline = style.element.find(f"{_W}pPr/{_W}outlineLvl")
            if outline is not None:
                return _outline_level(outline)
            style = getattr(style, "base_style", None)
        return 0

    def _list_mark(self, paragraph: Any) -> str | None:
        """What stands before a list item; None if it is none."""
        numbering = paragraph.find(f"{_W}pPr/{_W}numPr")
        style = self._style(paragraph)
        for _ in range(10):
            if numbering is not None or style is None:
                break
            numbering = style.element.find(f"{_W}pPr/{_W}numPr")
            style = getattr(style, "base_style", None)
        if numbering is None:
            return None
        number, level = (_value(numbering.find(_W + name)) for name in ("numId", "ilvl"))
        if number in (None, "0"):
            return None
        depth = int(level) if level is not None and level in "012345678" else 0
        if self._numbers.get((number, depth), "bullet") in ("bullet", "none"):
            return "  " * depth + "- "
        self._counts[number, depth] += 1
        for deeper in range(depth + 1, 9):
            self._counts.pop((number, deeper), None)
        return f"{'  ' * depth}{self._counts[number, depth]}. "

    def _style(self, paragraph: Any) -> Any:
        return self._styles.get(_value(paragraph.find(f"{_W}pPr/{_W}pStyle")) or "")


def _text(paragraph: Any) -> str:
    """The text of a paragraph, without that of its text boxes."""
    parts: list[str] = []
    stack = [iter(paragraph)]
    while stack:
        element = next(stack[-1], None)
        if element is None:
            stack.pop()
        elif element.tag in (_W + "t", _MATH_TEXT):
            parts.append(element.text or "")
        elif element.tag in _CHARACTERS:
            parts.append(_CHARACTERS[element.tag])
        elif element.tag in (_W + "footnoteReference", _W + "endnoteReference"):
            parts.append(f"[^{_note_name(element.get(_W + 'id'), element.tag[len(_W) : -len('Reference')])}]")
        elif element.tag not in _LEFT_OUT:
            stack.append(iter(element))
    return "".join(parts)


def _note_name(number: str | None, kind: str) -> str:
    return f"{'e' * (kind == 'endnote')}{number}"


def _rows(table: Any) -> Iterator[list[str]]:
    """Cells of a table; one that spans columns or rows has its text in the first of them."""
    for row in _children(table, "tr"):
        cells: list[str] = []
        for cell in _children(row, "tc"):
            merged = cell.find(f"{_W}tcPr/{_W}vMerge")
            goes_on = merged is not None and merged.get(_W + "val") != "restart"
            texts = (_text(paragraph) for paragraph in cell.iter(_W + "p"))
            cells.append("" if goes_on else "\n".join(text for text in texts if text.strip()))
            span = _value(cell.find(f"{_W}tcPr/{_W}gridSpan")) or "1"
            cells += [""] * (min(int(span), 100) - 1 if span.isascii() and span.isdigit() and len(span) < 9 else 0)
        yield cells


def _children(parent: Any, name: str) -> Iterator[Any]:
    for child in parent:
        if child.tag == _W + name:
            yield child
        elif child.tag in _CONTAINERS:
            yield from _children(child, name)


def _number_formats(document: WordDocument) -> dict[tuple[str, int], str]:
    """Format of each list by number and depth: "decimal", "bullet" …"""
    formats: dict[tuple[str, int], str] = {}
    for relation in document.part.rels.values():
        if relation.reltype.rpartition("/")[2] != "numbering" or relation.is_external:
            continue
        root: Any = relation.target_part.element
        abstract = {item.get(_W + "abstractNumId"): item for item in root.iter(_W + "abstractNum")}
        for number in root.iter(_W + "num"):
            for level in (
                _found if (_found := abstract.get(_value(number.find(_W + "abstractNumId")))) is not None else ()
            ):
                depth, name = level.get(_W + "ilvl"), _value(level.find(_W + "numFmt"))
                if level.tag == _W + "lvl" and depth and depth in "012345678" and name:
                    formats[number.get(_W + "numId"), int(depth)] = name
    return formats


def _outline_level(element: Any) -> int:
    level = _value(element)
    return int(level) + 1 if level is not None and level in tuple("01234567") else 0


def _value(element: Any) -> str | None:
    return None if element is None else element.get(_W + "val")
