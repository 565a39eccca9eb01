"""The Markdown parser: CommonMark without raw HTML, with tables, strikethrough, task lists, footnotes and formulas.

Rules here change what the parser found before it is written: citations `【3†…】`, pictures (become links: a page must
not fetch what a model names), links (only to the web and to files of the conversation; the true host is shown where the
text could mislead), direction of writing of each block.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.common.normalize_url import normalizeLink
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from mdit_py_plugins.footnote import footnote_plugin

from glm4.markup.code_classes import words
from glm4.markup.formula_rules import formula_block, formula_dollars, formula_tex, hide_bars
from glm4.markup.html_writer import FOOTNOTE_RULES, HtmlWriter
from glm4.markup.sanitizer import SCHEMES

# A paragraph or cell with more is shown without Markdown. For brackets, stars and such the parser looks through the
# rest of the text, each time: what their number times its length bounds is that work.
LONGEST_INLINE = 20_000
_MOST_SEARCHED = 2_000_000
_DEEPEST = 40  # lists in lists, quotes in quotes

_IN_TEXT = re.compile(
    r"【(?:[0-9]{1,4}:)?(?P<source>[0-9]{1,4})†[^【】\n]{0,300}】"
    r"|(?<![A-Za-z0-9])(?P<address>https?://[^\s<>\"`|\\【】（）《》「」，。；：！？、\u200e-\u202e\u2066-\u2069]{3,2000})"
)
_TASK = re.compile(r"\[([ xX])\][ \t]+")
_FILE = re.compile(r"(?:\./)?(v1/agent/files/[0-9a-f]{64})")
_PLAIN_HOST = re.compile(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", re.IGNORECASE)
_DOMAIN_IN_TEXT = re.compile(r"(?:https?://|www\.)\S|[\w-]+\.(?:[a-z]{2,})(?:$|[/\s:])", re.IGNORECASE)
_DIRECTED = words(
    """
    paragraph_open heading_open bullet_list_open ordered_list_open list_item_open blockquote_open th_open
    td_open
    """
)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST}, renderer_cls=HtmlWriter)
    parser.enable(["table", "strikethrough"]).use(footnote_plugin, inline=False, move_to_end=True)
    for name in FOOTNOTE_RULES:
        parser.add_render_rule(name, getattr(HtmlWriter, name))
    parser.validateLink = lambda url: True  # type: ignore[method-assign]  # `_link` decides, and keeps the text
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "formula_block", formula_block, interrupts)
    parser.block.ruler.at("fence", _marking_open(parser), interrupts)
    parser.inline.ruler.before("escape", "formula_tex", formula_tex)
    parser.inline.ruler.before("escape", "formula_dollars", formula_dollars)
    parser.core.ruler.before("inline", "long_inline", _long_inline)
    parser.core.ruler.push("dress", _dress)
    return parser


def parse(source: str, env: dict[str, Any]) -> list[list[Token]]:
    """The blocks of a text, each as its tokens. `env` gets what it defines; "growing" in it: it is not complete."""
    tokens = _parser().parse(hide_bars(source), env)
    blocks: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if not depth:
            blocks.append([])
        blocks[-1].append(token)
        depth += token.nesting
    return blocks


def write(tokens: list[Token], env: dict[str, Any]) -> str:
    """The HTML of one block's tokens, not yet sanitized."""
    parser = _parser()
    html: str = parser.renderer.render(tokens, parser.options, env)
    return html


def _marking_open(parser: MarkdownIt) -> Callable[[StateBlock, int, int, bool], bool]:
    """The rule of fences, which also notes whether the end of the text stands in for the closing fence."""
    rule = next(rule.fn for rule in parser.block.ruler.__rules__ if rule.name == "fence")

    def fence(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
        if not rule(state, start_line, end_line, silent):
            return False
        if not silent:
            token = state.tokens[-1]
            last = state.line - 1
            line = state.src[state.bMarks[last] + state.tShift[last] : state.eMarks[last]].rstrip(" \t")
            marker = token.markup[0]
            closed = last > start_line and len(line) >= len(token.markup) and not line.strip(marker)
            token.meta["open"] = not closed or state.sCount[last] - state.blkIndent >= 4
            token.meta["indent"] = state.sCount[start_line]
        return True

    return fence


def _long_inline(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline" and _costly(token.content):
            token.children = [Token("text", "", 0, content=token.content)]
            token.content = ""


def _costly(text: str) -> bool:
    searches = 4 * text.count("[") + sum(map(text.count, "*_~"))
    return len(text) > LONGEST_INLINE or searches * len(text) > _MOST_SEARCHED


def _dress(state: StateCore) -> None:
    for number, token in enumerate(state.tokens):
        if token.type in _DIRECTED:
            token.attrSet("dir", "auto")
        if token.type in ("th_open", "td_open") and "style" in token.attrs:
            align = str(token.attrs.pop("style")).rpartition(":")[2]
            token.attrSet("class", align)
        if token.type == "inline" and token.children:
            if number >= 2 and state.tokens[number - 2].type == "list_item_open":
                _task(state.tokens[number - 2], token.children)
            token.children = _dress_inline(token.children)


def _task(item: Token, children: list[Token]) -> None:
    box = _TASK.match(children[0].content) if children[0].type == "text" else None
    if box:
        children[0].content = children[0].content[box.end() :]
        item.attrSet("class", "task")
        children.insert(0, Token("tick", "span", 0, content="☐" if box[1] == " " else "☑"))


def _dress_inline(children: list[Token]) -> list[Token]:
    dressed: list[Token] = []
    links: list[tuple[int, str]] = []  # of each link that is open: where it starts in `dressed`, its host or ""
    for token in children:
        if token.type == "link_open":
            links.append((len(dressed), _open_link(token)))
            dressed.append(token)
        elif token.type == "link_close":
            start, host = links.pop()
            _close_link(dressed, start, host, token)
        elif token.type == "image":
            _picture(dressed, token, within_link=bool(links))
        elif token.type == "text" and not links and ("【" in token.content or "://" in token.content):
            _text(dressed, token.content)
        else:
            dressed.append(token)
    return dressed


def _open_link(token: Token) -> str:
    """Makes a link safe to follow. Returns its host as the browser will ask for it, "" where there is none to show."""
    href = str(token.attrs.get("href", ""))
    file = _FILE.fullmatch(href)
    if file:
        token.attrSet("href", file[1])
        return ""
    try:
        address = urlsplit(href)
        host = address.hostname or ""
    except ValueError:
        address, host = None, ""
    if address is None or address.scheme.lower() not in SCHEMES or (address.scheme.lower() != "mailto" and not host):
        token.hidden = True
        return ""
    token.attrSet("target", "_blank")
    return host if address.scheme.lower() != "mailto" else ""


def _close_link(dressed: list[Token], start: int, host: str, token: Token) -> None:
    opened = dressed[start]
    if opened.hidden:
        dressed.pop(start)
        return
    text = "".join(child.content for child in dressed[start + 1 :])
    dressed.append(token)
    if host and _misleads(text, host, str(opened.attrs["href"])):
        dressed.append(Token("host", "span", 0, content=host))


def _misleads(text: str, host: str, href: str) -> bool:
    """Whether a reader should see the host: it is written in an unusual way, or the text names a different one."""
    if not _PLAIN_HOST.fullmatch(host) or "xn--" in host or "@" in urlsplit(href).netloc:
        return True
    return bool(_DOMAIN_IN_TEXT.search(text)) and host.removeprefix("www.") not in text.lower()


def _picture(dressed: list[Token], token: Token, *, within_link: bool) -> None:
    source = str(token.attrs.get("src", ""))
    alt = "".join(child.content for child in token.children or ()) or token.content
    text = Token("text", "", 0, content=alt or source)
    if within_link:
        dressed.append(text)
        return
    _link(dressed, source, text.content)


def _link(dressed: list[Token], href: str, text: str) -> None:
    opened = Token("link_open", "a", 1, attrs={"href": href})
    host = _open_link(opened)
    start = len(dressed)
    dressed.extend((opened, Token("text", "", 0, content=text)))
    _close_link(dressed, start, host, Token("link_close", "a", -1))


def _text(dressed: list[Token], text: str) -> None:
    """Text with its citations and the web addresses that stand in it as such."""
    end = 0
    for found in _IN_TEXT.finditer(text):
        dressed.append(Token("text", "", 0, content=text[end : found.start()]))
        end = found.end()
        if found["source"]:
            dressed.append(Token("citation", "a", 0, content=str(int(found["source"]))))
            continue
        address = found["address"].rstrip(".,;:!?)]}*_~'")
        end -= len(found["address"]) - len(address)
        _link(dressed, normalizeLink(address), address)
    dressed.append(Token("text", "", 0, content=text[end:]))
