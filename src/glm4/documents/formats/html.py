"""HTML: a page's main text through trafilatura; the whole page where that finds little.

Nothing is fetched: no picture, style, frame or script. Hidden elements are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from glm4.documents.document import Block, Kind
from glm4.documents.formats.detection import Content
from glm4.documents.formats.parsed import Parsed, RefusedError

if TYPE_CHECKING:
    from lxml.html import HtmlElement

_LEAST_SHARE = 0.25
_SHORT_CHARACTERS = 500  # of a page that has nothing but its main text
_MOST_DEPTH = 200
_MOST_MAIN_CHARACTERS = 2_000_000
_SKIPPED_WORDS = """
script style noscript template head iframe object embed svg math canvas audio video button select input
textarea nav dialog
"""
_SKIPPED = frozenset(_SKIPPED_WORDS.split())
_BLOCKS_WORDS = """
address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form
header hr html legend li main menu ol p section summary ul h1 h2 h3 h4 h5 h6 pre table tr caption br
"""
_BLOCKS = frozenset(_BLOCKS_WORDS.split())
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w-]{2,30})|<\?xml[^>]{0,100}encoding=["']([\w-]{2,30})""",
    re.IGNORECASE,
)


def load(content: Content, parsed: Parsed) -> None:
    """Read an HTML page."""
    root = parse_html(_declared(content.data) or content.text)
    title = root.find(".//title")
    parsed.set_title(title.text_content() if title is not None else None)
    whole = Parsed()
    add_elements(root, whole)
    for block in _main_blocks(root, whole.blocks):
        parsed.add(block.text, block.kind, level=block.level)


def parse_html(text: str) -> HtmlElement:
    """The root of a page.

    Raises:
        RefusedError: nested too deeply, or nothing inside.
    """
    from lxml import etree, html

    # A declared encoding would be an error, as the text is decoded already.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        root = html.document_fromstring(
            text, parser=html.HTMLParser(encoding="utf-8", no_network=True, huge_tree=False)
        )
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise RefusedError(f"is an HTML page without content ({error})") from None
    return root


def add_elements(root: HtmlElement, parsed: Parsed, *, min_level: int = 1) -> None:
    """Append everything below an element that a reader would see.

    Args:
        min_level: of headings; a book's chapters begin below its parts.
    """
    for text, kind, level in _walk(root, 0):
        parsed.add(text, kind, level=max(level, min_level) if level else 0)


def _declared(data: bytes) -> str | None:
    """The text in the encoding that the page states, if it is one and fits; marks at the beginning come first."""
    found = _CHARSET.search(data[:4096])
    if found is None or data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        return None
    name = (found[1] or found[2]).decode("ascii").lower()
    try:
        return data.decode("gb18030" if name in ("gb2312", "gbk") else name)
    except (LookupError, ValueError):
        return None


def _main_blocks(root: HtmlElement, blocks: Sequence[Block]) -> Sequence[Block]:
    """The blocks of a page's main text, as trafilatura finds it; all of them where it finds little.

    It only chooses: of itself it loses headings, numbers of lists and parts of tables.
    """
    length = sum(len(block.text) for block in blocks)
    if not _SHORT_CHARACTERS < length <= _MOST_MAIN_CHARACTERS:
        return blocks
    starts = {_start(line) for line in _main_text(root).split("\n")} - {""}
    found = [at for at, block in enumerate(blocks) if block.kind != "heading" and _start(block.text) in starts]
    if sum(len(blocks[at].text) for at in found) < _LEAST_SHARE * length:
        return blocks
    first, last = found[0], found[-1]
    while first and blocks[first - 1].kind == "heading":
        first -= 1
    chosen = {*found, *(at for at, block in enumerate(blocks) if block.kind != "paragraph")}
    return [block for at, block in enumerate(blocks) if first <= at <= last and at in chosen]


def _main_text(root: HtmlElement) -> str:
    import logging

    import trafilatura
    from lxml import html

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    copy = html.fromstring(html.tostring(root))  # as it changes what it reads
    return trafilatura.extract(copy, include_comments=False, include_tables=True, favor_recall=True) or ""


def _start(text: str) -> str:
    """By which a paragraph is found again: its first letters and digits."""
    return "".join(char for char in text[:200].split("\n")[0] if char.isalnum())[:40]


_Piece = tuple[str, Kind, int]


def _walk(element: HtmlElement, depth: int) -> Iterator[_Piece]:
    """Blocks below an element, in order."""
    if depth > _MOST_DEPTH:
        raise RecursionError
    inline: list[str] = [element.text or ""]
    for child in element:
        tag = child.tag if isinstance(child.tag, str) else None
        if tag is not None and not _is_hidden(child, tag):
            if tag == "br":
                inline.append("\n")
            elif tag in _BLOCKS or _has_block(child):
                yield from _paragraph(inline)
                inline = []
                yield from _block(child, tag, depth)
            else:
                inline.append(_inline(child))
        inline.append(child.tail or "")
    yield from _paragraph(inline)


def _block(element: HtmlElement, tag: str, depth: int) -> Iterator[_Piece]:
    if re.fullmatch(r"h[1-6]", tag):
        yield _inline(element), "heading", int(tag[1])
    elif tag == "pre":
        yield element.text_content(), "code", 0
    elif tag == "table":
        yield from _table(element, depth)
    elif tag in ("ul", "ol", "menu"):
        yield "\n".join(_items(element, 0)), "list", 0
    elif tag == "figcaption":
        yield _inline(element), "caption", 0
    else:
        yield from _walk(element, depth + 1)


def _paragraph(inline: list[str]) -> Iterator[_Piece]:
    text = "\n".join(" ".join(line.split()) for line in "".join(inline).split("\n" if "\n" in inline else "\0"))
    if text.strip():
        yield text, "paragraph", 0


def _items(element: HtmlElement, depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise RecursionError
    number = 0
    for child in element:
        if child.tag in ("ul", "ol", "menu"):
            yield from _items(child, depth + 1)
        elif child.tag == "li" and not _is_hidden(child, "li"):
            number += 1
            mark = f"{number}." if element.tag == "ol" else "-"
            nested = [inner for inner in child if inner.tag in ("ul", "ol", "menu")]
            text = " ".join(_inline(child, without=nested).split())
            if text:
                yield f"{'  ' * min(depth, 10)}{mark} {text}"
            for inner in nested:
                yield from _items(inner, depth + 1)


def _table(element: HtmlElement, depth: int) -> Iterator[_Piece]:
    from glm4.documents.formats.parsed import pipe_table

    rows: list[list[str]] = []
    for row in element.iter("tr"):
        if next(row.iterancestors("table"), None) is not element:
            continue
        cells: list[str] = []
        for cell in row:
            if cell.tag in ("td", "th"):
                cells.append(_inline(cell))
                cells += [""] * (_span(cell) - 1)
        rows.append(cells)
    if max(map(len, rows), default=0) > 1:
        for caption in element.findall("caption"):
            yield _inline(caption), "caption", 0
        yield pipe_table(rows), "table", 0
    else:  # a table of one column lays out a page
        for row in element.iter("td", "th"):
            if next(row.iterancestors("table"), None) is element:
                yield from _walk(row, depth + 1)


def _span(cell: HtmlElement) -> int:
    span = cell.get("colspan", "1")
    return min(int(span), 100) if span.isascii() and span.isdigit() and span != "0" and len(span) < 9 else 1


def _inline(element: HtmlElement, without: Any = ()) -> str:
    """The text of an element that is one piece; hidden parts and `without` are left out."""
    parts: list[str] = []
    skipped = 0
    from lxml.etree import iterwalk

    for event, inner in iterwalk(element, events=("start", "end", "comment", "pi")):
        if event in ("comment", "pi"):
            parts += [] if skipped else [inner.tail or ""]
            continue
        tag = inner.tag if isinstance(inner.tag, str) else ""
        hidden = inner is not element and (inner in without or _is_hidden(inner, tag))
        if event == "start":
            skipped += hidden
            if not skipped:
                parts += [" " if tag in _BLOCKS and inner is not element else "", inner.text or ""]
        else:
            skipped -= hidden
            if not skipped and inner is not element:
                parts += [" " if tag in _BLOCKS else "", inner.tail or ""]
    return " ".join("".join(parts).split())


def _is_hidden(element: HtmlElement, tag: str) -> bool:
    if tag in _SKIPPED or element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    style = element.get("style")
    return style is not None and _HIDDEN.search(style) is not None


def _has_block(element: HtmlElement) -> bool:
    """Whether a page's inline element holds blocks, as careless pages have it."""
    return any(
        isinstance(inner.tag, str) and inner.tag in _BLOCKS and inner.tag != "br" for inner in element.iterdescendants()
    )
