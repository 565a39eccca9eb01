"""Characters that no document's text has: they are invisible, steer a terminal, or hide what a model would read."""

from __future__ import annotations

import re

# Controls but for tab and line feed, lone surrogates, noncharacters, marks without width (soft hyphen, zero-width
# space, word joiner, byte order mark), overrides of the writing direction, and Unicode tags, which hide instructions.
# Zero-width joiners stay: Persian, Indian scripts and emoji need them.
_REMOVED = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    "\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f"
)
_UNWANTED = re.compile(f"[{_REMOVED}]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def clean(text: str) -> str:
    """The text without such characters; every kind of line end becomes a line feed, a no-break space a space."""
    return _UNWANTED.sub("", _LINE_ENDS.sub("\n", text).replace("\u00a0", " "))


def is_clean(text: str) -> bool:
    """Whether `clean` would remove nothing."""
    return _UNWANTED.search(text) is None
