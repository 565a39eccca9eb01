"""Sentences as LongCite was trained with them: Punkt trained on the document itself, then the marks of Chinese.

Punkt (Kiss and Strunk, 2006) is nltk's; it learns abbreviations from the text and loads no data. Source: LongCite.
"""

from __future__ import annotations

import re

from glm4.system.extras import Package, require_packages

_MARKS = re.compile("([。；！？])")
_NLTK = Package("nltk", least="3.9")


def longcite_starts(text: str) -> list[int]:
    """Where the sentences of a text begin, in ascending order.

    A mark behind another mark is a sentence of its own; a text of one sentence is split at blank lines instead.

    Raises:
        MissingExtraError: nltk is not installed.
    """
    require_packages("reading with a LongCite model", "longcite", (_NLTK,))
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    pieces: list[str] = []
    for sentence in PunktSentenceTokenizer(text).tokenize(text):
        parts = _MARKS.split(sentence)
        pieces += [part + mark for part, mark in zip(parts[::2], [*parts[1::2], ""], strict=True)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) == 1:
        pieces = text.split("\n\n")
    starts: list[int] = []
    at = 0
    for piece in filter(None, map(str.strip, pieces)):
        start = text.index(piece, at)
        starts.append(start)
        at = start + len(piece)
    return starts
