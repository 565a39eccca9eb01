"""Text of servers that people and models read: without control characters, and cut."""

from __future__ import annotations

import unicodedata

# Categories: control, format (also the characters that reverse the direction of text), private use, surrogates.
_HIDDEN = frozenset(("Cc", "Cf", "Co", "Cs"))
_KEPT = frozenset("\n\t\u200c\u200d")  # joiners belong to the spelling of some languages, and to emoji


def visible(text: str, most: int) -> str:
    """Without what cannot be seen, at most so many characters."""
    kept = "".join(c for c in text[: most * 2] if c in _KEPT or unicodedata.category(c) not in _HIDDEN).strip()
    return kept if len(kept) <= most and len(text) <= most * 2 else kept[: most - 1] + "…"


def one_line(text: str, most: int) -> str:
    """The same on one line."""
    return " ".join(visible(text, most).split())
