"""What HTML from a model may hold, written down a second time and read by a second parser.

On purpose nothing here is imported from the sanitizer: a line added there by mistake fails here.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

_TEXT = "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s section span strong sup"
_TABLES = "table tbody td th thead tr ul"
_MATH = (
    "math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle "
    "msub msubsup msup mtable mtd mtext mtr munder munderover"
)
TAGS = frozenset(f"{_TEXT} {_TABLES} {_MATH}".split())
VOID = frozenset(["br", "hr"])
_MATH_ATTRIBUTE = re.compile(r"[a-z]+")
_MATH_VALUE = re.compile(r"[A-Za-z0-9.+%-]*")
_VALUES = {
    "target": re.compile("_blank"),
    "rel": re.compile("noopener noreferrer nofollow"),
    "href": re.compile(r"https?://[^\s]+|mailto:[^\s]+|v1/agent/files/[0-9a-f]{64}|#cite-\d{1,4}"),
    "class": re.compile(r"[a-z0-9 -]*"),
    "dir": re.compile("auto"),
    "tabindex": re.compile("0"),
    "role": re.compile("region"),
    "start": re.compile(r"\d{1,9}"),
    "data-n": re.compile(r"\d{1,4}"),
    "data-lang": re.compile(r"[a-z0-9+#._-]{0,30}"),
    "data-tex": re.compile(r".*", re.DOTALL),
    "title": re.compile(r".*", re.DOTALL),
}
_NEVER = frozenset(
    ["style", "id", "name", "src", "srcset", "action", "formaction", "href", "xlink:href", "xmlns", "actiontype"]
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tops = 0
        self.text: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.open:
            self.tops += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag not in TAGS:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            if name in _VALUES:
                fine = _VALUES[name].fullmatch(value or "") is not None
            else:
                math = tag.startswith("m") and _MATH_ATTRIBUTE.fullmatch(name) and not name.startswith("on")
                fine = bool(math) and name not in _NEVER and _MATH_VALUE.fullmatch(value or "") is not None
            if not fine:
                self.faults.append(f"<{tag} {name}={value!r}>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> does not match")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self.faults.append(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        self.faults.append(f"<?{data}>")


def faults(block: str) -> list[str]:
    """What is wrong with a block: tags and attributes that are not allowed, more or less than one top-level element."""
    reader = _Reader()
    reader.feed(block)
    reader.close()
    found = list(reader.faults)
    if reader.tops != 1 or not block.startswith("<") or not block.endswith(">"):
        found.append(f"{reader.tops} top-level elements")
    if reader.open:
        found.append(f"left open: {reader.open}")
    return found


def text_of(block: str) -> str:
    """The text that a reader sees."""
    reader = _Reader()
    reader.feed(block)
    reader.close()
    return "".join(reader.text)
