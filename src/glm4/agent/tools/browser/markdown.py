"""`whole_page`: a cleaned HTML tree as Markdown. Runs inside the sandbox; does not recurse, so depth costs nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml.html import HtmlElement

_BLOCKS = frozenset(
    {
        "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt", "fieldset",
        "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "legend", "li",
        "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
    }
)  # fmt: skip
_SKIPPED = frozenset({"head", "title"})
_SPACES = re.compile(r"\s+")


def whole_page(tree: HtmlElement, most: int) -> str:
    """The page as Markdown of at most some `most` characters; links are as they stand in the tree's texts."""
    writer = _Writer()
    stack: list[tuple[HtmlElement, bool]] = [(tree, False)]
    while stack and writer.length < most:
        element, ended = stack.pop()
        if ended:
            writer.end(element)
            writer.text(element.tail)
            continue
        if not isinstance(element.tag, str) or element.tag in _SKIPPED:
            writer.text(element.tail)
            continue
        writer.begin(element)
        writer.text(element.text)
        stack.append((element, True))
        stack.extend((child, False) for child in reversed(element))
    return writer.result()[:most]


class _Writer:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._prefix = ""  # of the next line
        self._lists: list[int] = []  # the next number, or -1
        self._pre = 0
        self.length = 0

    def text(self, text: str | None) -> None:
        """Words; white space counts in `<pre>` only."""
        if not text:
            return
        if self._pre:
            first, *others = text.split("\n")
            self._line += first
            for line in others:
                self._flush(keep=True)
                self._line = line
            return
        words = _SPACES.sub(" ", text)
        self._line += words.lstrip() if not self._line or self._line.endswith(" ") else words

    def begin(self, element: HtmlElement) -> None:
        """Start of an element."""
        tag = str(element.tag)
        if tag in ("td", "th"):
            self._line = f"{self._line.rstrip()} | " if self._line.strip() else "| "
        elif tag == "br":
            self._flush()
        elif tag in _BLOCKS:
            self._flush()
            self._begin_block(tag)

    def end(self, element: HtmlElement) -> None:
        """End of an element."""
        tag = str(element.tag)
        if tag == "tr" and self._line.strip():
            self._line = f"{self._line.rstrip()} |"
        if tag in _BLOCKS:
            self._flush()
            self._prefix = ""
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "pre":
            self._pre -= 1
            self._lines.append("```")
        if tag in _BLOCKS and tag not in ("li", "tr", "dd", "dt"):
            self._gap()

    def result(self) -> str:
        """All of it."""
        self._flush()
        if self._pre:
            self._lines.append("```")
        return "\n".join(self._lines).strip()

    def _begin_block(self, tag: str) -> None:
        if tag in ("ul", "ol"):
            self._lists.append(1 if tag == "ol" else -1)
        elif tag == "li":
            self._prefix = self._item()
        elif tag == "pre":
            self._lines.append("```")
            self._pre += 1
        elif tag == "hr":
            self._gap()
        elif tag[0] == "h" and tag[1:].isdigit():
            self._gap()
            self._prefix = "#" * int(tag[1:]) + " "
        elif tag == "blockquote":
            self._prefix = "> "

    def _item(self) -> str:
        indent = "  " * min(len(self._lists) - 1, 8)
        if not self._lists or self._lists[-1] < 0:
            return f"{indent}- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1] - 1}. "

    def _flush(self, *, keep: bool = False) -> None:
        line, self._line = self._line.rstrip(), ""
        if line or keep:
            line = self._prefix + line
            self._prefix = ""
            self._lines.append(line)
            self.length += len(line) + 1

    def _gap(self) -> None:
        if self._lines and self._lines[-1]:
            self._lines.append("")
