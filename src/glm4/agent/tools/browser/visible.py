"""`visible`: of a stranger's text, what a person would see of it; and no mark that only this browser may set.

Removed: control characters (terminal escapes among them), zero-width and bidirectional controls, tag characters,
private and unassigned code points, and runs of variation selectors, which can hide whole texts from people but not from
models. Joiners stay where scripts and emoji need them: between two characters beyond Latin.

`【` and `】` become `〖` and `〗`: references to links and sources are written with them, and a page must write none.

Not covered: text that is visible and misleading; letters of one script that look like those of another; white text on a
white ground.
"""

from __future__ import annotations

import re
import unicodedata

_BRACKETS = str.maketrans({"【": "〖", "】": "〗", "\u2028": "\n", "\u2029": "\n", "\x85": "\n", "\xa0": " "})
_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs")
_JOINERS = "\u200c\u200d"
_LONE_JOINER = re.compile(
    r"(?<![\u0300-\U0010ffff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0300-\U0010ffff])|(?<=[\u200c\u200d])[\u200c\u200d]"
)
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b\n]{0,1000}(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]"
)
_SELECTORS = re.compile(r"[\ufe00-\ufe0f\U000e0100-\U000e01ef]{2,}")


def visible(text: str) -> str:
    """The text as the module's docstring says; line breaks and tabs stay."""
    return without_unseen(text.replace("\r\n", "\n").replace("\r", "\n").translate(_BRACKETS))


def without_unseen(text: str) -> str:
    """The text without what nobody sees; brackets stay."""
    if not text.isprintable():
        text = _ESCAPE.sub("", text)
        text = "".join(character for character in text if _is_seen(character))
    return _SELECTORS.sub("", _LONE_JOINER.sub("", text))


def visible_line(text: str, most: int = 200) -> str:
    """The text as one line of at most `most` characters: of titles and addresses."""
    line = " ".join(visible(text[: 20 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def _is_seen(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _UNSEEN
