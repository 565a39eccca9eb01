"""HTML as a model reads it: what runs inside the sandbox, on bytes that a stranger wrote. See `pages.py`.

The page is parsed once (lxml), what a reader does not see is removed, and links get numbers. Then trafilatura finds the
main text; where it finds little of what is there (front pages, lists, forms), the whole page is written as Markdown.

Removed as unseen: scripts, styles, frames, templates, comments, forms' hidden fields, `<nav>`, and what an attribute of
its own hides (`hidden`, and in `style`: display, visibility, opacity, size, place outside of the page).

Not covered: what style sheets hide, or colors, or other elements in front; what scripts would show or change (they are
not run); pictures.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from glm4.agent.tools.browser.charset import decode_html
from glm4.agent.tools.browser.markdown import whole_page
from glm4.agent.tools.browser.visible import visible, visible_line
from glm4.multimodal.addresses import AddressError, Target, linked, parse_url

if TYPE_CHECKING:
    from lxml.html import HtmlElement

MAX_HTML_NBYTES = 4 << 20
MAX_LINKS = 5_000
MAX_CHARS = 400_000
"""Of a page's text."""

_MAX_ELEMENTS = 40_000
_MAX_TAG_CHARS = 64 << 10
_MAX_ATTRIBUTES = 400
_LEAST_MAIN = 250
_LEAST_SHARE = 0.25
_UNSEEN_TAGS = (
    "script", "style", "template", "iframe", "frame", "frameset", "noframes", "object", "embed", "applet", "svg",
    "canvas", "audio", "video", "link", "meta", "nav", "input", "select", "textarea", "button", "datalist", "dialog",
)  # fmt: skip
_UNSEEN_STYLE = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|opacity:0*\.?0*(?:[;%!]|$)|font-size:0*\.?0*(?:px|em|rem|pt|%)?(?:[;!]|$)"
    r"|(?:text-indent|left|top|right|bottom|margin-left|margin-top):-\d{3,}|color:transparent"
    r"|clip:rect\(0(?:px)?,?0|clip-path:inset\((?:50|100)%|transform:scale\(0\)"
)
_IGNORED_IN_STYLE = re.compile(r"/\*.*?\*/|[\s\\]", re.DOTALL)
_NO_SIZE = re.compile(r"(?:height|width):0*\.?0*(?:px|em|rem|%)?(?:[;!]|$)")
_LONG_TAG = re.compile(r"<[^<>]{2048,}>?")
_LINK = re.compile(r"【(\d+)†([^【】]*)】")
_ESCAPED = re.compile(r"(?<!\\)\\([_*\[\]<>~#])")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")


def extract(argument: bytes) -> bytes:
    """A page.

    Args:
        argument: a line of JSON with "url", "charset" (as the server says, or empty) and "html" (false for plain text);
            then the file.

    Returns:
        JSON: "title", "text" (Markdown, links as `【n†words】` or `【n†words†host】`), "links" (URLs, by number).
    """
    line, _, data = argument.partition(b"\n")
    given = json.loads(line)
    text = decode_html(data[:MAX_HTML_NBYTES], given["charset"])
    title, text, links = read_html(text, given["url"]) if given["html"] else ("", visible(text)[:MAX_CHARS], [])
    return json.dumps({"title": title, "text": text, "links": links}).encode()


def read_html(html: str, url: str) -> tuple[str, str, list[str]]:
    """Title, text and links of a page; see `extract`."""
    from lxml.etree import LxmlError
    from lxml.html import HTMLParser, document_fromstring

    html = _LONG_TAG.sub(_without_many_attributes, html.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        tree = document_fromstring(html.encode("utf-8", "replace"), parser=parser, ensure_head_body=True)
    except LxmlError:  # nothing is in it
        return "", "", []
    title = _title(tree)
    base = _base(tree, parse_url(url))
    _remove_unseen(tree)
    links = _number_links(tree, base)
    return title, *_renumbered(_text(tree), links, parse_url(url).host)


def _without_many_attributes(tag: re.Match[str]) -> str:
    """A long tag, which a million attributes would make one that the parser takes hours for."""
    many = len(tag[0]) > _MAX_TAG_CHARS or tag[0].count("=") + tag[0].count(" ") > _MAX_ATTRIBUTES
    return " " if many else tag[0]


def _text(tree: HtmlElement) -> str:
    whole = whole_page(tree, MAX_CHARS)
    if sum(1 for _ in tree.iter()) > _MAX_ELEMENTS:
        return whole
    main = _main_text(tree)
    return main if len(main) >= max(_LEAST_MAIN, _LEAST_SHARE * len(whole)) else whole


def _main_text(tree: HtmlElement) -> str:
    import logging

    from trafilatura import extract as trafilatura_extract

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    try:
        main = trafilatura_extract(tree, output_format="markdown", include_links=False, include_tables=True)
    except (RecursionError, ValueError, TypeError, AttributeError, KeyError, IndexError):  # it is no parser of traps
        return ""
    # Escapes are for those who render Markdown; code has none.
    pieces = _CODE.split(main or "")
    pieces[::2] = [_ESCAPED.sub(r"\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _title(tree: HtmlElement) -> str:
    found = tree.find("head/title")
    title = "" if found is None else visible_line(str(found.text_content()))
    heading = None if title else tree.find(".//h1")
    return title if heading is None else visible_line(str(heading.text_content()))


def _base(tree: HtmlElement, page: Target) -> Target:
    """What links are relative to, as in browsers: the first `<base href>` that leads to a web address."""
    element = tree.find(".//base[@href]")
    try:
        return page if element is None else linked(page, str(element.get("href")))
    except AddressError:
        return page


def _remove_unseen(tree: HtmlElement) -> None:
    for element in list(tree.iter()):
        if element.tail is not None:  # first, as it stays where an element goes
            element.tail = visible(element.tail)
        if element.getparent() is not None and (
            not isinstance(element.tag, str) or element.tag in _UNSEEN_TAGS or _is_hidden(element)
        ):
            element.drop_tree()
        elif element.text is not None:
            element.text = visible(element.text)


def _is_hidden(element: HtmlElement) -> bool:
    if element.tag in ("html", "body"):  # some pages show themselves by a script
        return False
    if element.get("hidden") is not None:
        return True
    style = element.get("style")
    if not style:
        return False
    style = _IGNORED_IN_STYLE.sub("", style).lower()
    return bool(_UNSEEN_STYLE.search(style) or (_NO_SIZE.search(style) and "overflow" in style))


def _number_links(tree: HtmlElement, base: Target) -> list[str]:
    """Put `【n†` and `】` around the words of every link; n is its place in the list returned."""
    numbers: dict[str, int] = {}
    targets: dict[str, str | None] = {}
    for element in tree.iter("a"):
        href = str(element.get("href", "#")).strip()
        if href.startswith("#") or len(numbers) >= MAX_LINKS:
            continue
        if href not in targets:
            targets[href] = _web_address(base, href)
        target = targets[href]
        if target is None or not str(element.text_content()).strip():
            continue
        number = numbers.setdefault(target, len(numbers))
        element.text = f"【{number}†{(element.text or '').lstrip()}"
        last = element[-1] if len(element) else None
        if last is None:
            element.text = f"{element.text.rstrip()}】"
        else:
            last.tail = f"{(last.tail or '').rstrip()}】"
    return list(numbers)


def _web_address(base: Target, href: str) -> str | None:
    try:
        return linked(base, href).url
    except AddressError:
        return None


def _renumbered(text: str, links: list[str], host: str) -> tuple[str, list[str]]:
    """Links that are left, by their order in the text, with their hosts where these are others."""
    used: dict[str, int] = {}

    def mark(match: re.Match[str]) -> str:
        words = " ".join(match[2].split())
        if not words.strip("*`_ "):
            return ""
        url = links[int(match[1])]
        number = used.setdefault(url, len(used))
        other = parse_url(url).host
        return f"【{number}†{words}†{other}】" if other != host else f"【{number}†{words}】"

    pieces: list[str] = []
    at = 0
    for match in _LINK.finditer(text):
        pieces += (_without_marks(text[at : match.start()]), mark(match))
        at = match.end()
    pieces.append(_without_marks(text[at:]))
    joined = _BLANK_LINES.sub("\n\n", "".join(pieces)).strip()
    return joined[:MAX_CHARS], list(used)


def _without_marks(text: str) -> str:
    """Halves of marks, where a link was cut in two."""
    return re.sub(r"【\d+†|】", "", text)
