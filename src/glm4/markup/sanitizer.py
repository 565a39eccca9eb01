"""The last step of every block: nothing leaves this package that is not in the lists below.

The renderer writes no HTML of the model's to begin with (raw HTML in Markdown is text). This is the second wall, for
the day that a rule, a lexer or the formula library writes what it should not.

Does NOT cover: what a link shows once it is opened; text that misleads a human reader (look-alike letters, or
characters that turn the direction of writing, within a block); styles, which are the page's.
"""

from __future__ import annotations

import re

import nh3

from glm4.markup.code_classes import CODE_CLASSES, words

# Files of conversations, relative to the page, and the list of sources below an answer.
_RELATIVE = re.compile(r"v1/agent/files/[0-9a-f]{64}|#cite-[0-9]{1,4}")
SCHEMES = frozenset({"http", "https", "mailto"})

_TEXT_TAGS = words(
    """
    a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s section span strong sup table tbody td th
    thead tr ul
    """
)
_MATH_TAGS = words(
    """
    math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt
    mstyle msub msubsup msup mtable mtd mtext mtr munder munderover
    """
)
_REMOVED_WITH_CONTENT = words(
    """
    script style iframe object embed svg template noscript title textarea xmp
    """
)

_MATH_ATTRIBUTES = words(
    """
    accent accentunder columnspan depth display displaystyle fence form height largeop linethickness lspace
    mathvariant maxsize minsize movablelimits notation rowspan rspace scriptlevel separator stretchy symmetric
    voffset width
    """
)
MATH_CLASSES = words(
    """
    m-left m-right m-center m-pl0 m-pr0 m-pl1 m-border-left m-border-right m-border-top m-border-bottom m-full
    m-half m-box
    """
)
_ALIGNED = frozenset({"left", "center", "right"})
_CLASSES = {
    "a": {"cite"},
    "code": {"formula-error"},
    "div": {"table", "formula"},
    "li": {"task"},
    "p": {"formula-open"},
    "pre": {"code"},
    "section": {"footnotes"},
    "span": {"host", "tick", "tex", "formula", *CODE_CLASSES},
    "sup": {"footnote"},
    "td": _ALIGNED,
    "th": _ALIGNED,
    **dict.fromkeys(("menclose", "mtable", "mtd", "mrow"), MATH_CLASSES),
}
_WITH_DIRECTION = ("blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p", "td", "th", "ul")


def _relative(url: str) -> str | None:
    return url if _RELATIVE.fullmatch(url) else None


def _attributes() -> dict[str, set[str]]:
    allowed = {tag: set(_MATH_ATTRIBUTES) for tag in _MATH_TAGS}
    allowed["a"] = {"href", "title", "data-n"}
    allowed["div"] = allowed["span"] = {"data-tex"}
    allowed["ol"] = {"start"}
    allowed["pre"] = {"data-lang"}
    return allowed


def _attribute_values() -> dict[str, dict[str, set[str]]]:
    values = {tag: {"dir": {"auto"}} for tag in _WITH_DIRECTION}
    values["a"] = {"target": {"_blank"}}
    values["div"] = {"tabindex": {"0"}, "role": {"region"}}
    values["pre"] = {"tabindex": {"0"}}
    return values


_CLEANER = nh3.Cleaner(
    tags=set(_TEXT_TAGS | _MATH_TAGS),
    clean_content_tags=set(_REMOVED_WITH_CONTENT),
    attributes=_attributes(),
    tag_attribute_values=_attribute_values(),
    allowed_classes={tag: set(classes) for tag, classes in _CLASSES.items()},
    url_schemes=set(SCHEMES),
    url_relative=_relative,
    link_rel="noopener noreferrer nofollow",
)


def sanitize(html: str) -> str:
    """One block, with only the tags, attributes, classes and addresses listed above. A second time changes nothing."""
    return _CLEANER.clean(html)


def escape(text: str) -> str:
    """Text as the sanitizer writes it between tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\xa0", "&nbsp;")


def escape_attribute(text: str) -> str:
    """Text as the value of an attribute between double quotes."""
    return escape(text).replace('"', "&quot;")
