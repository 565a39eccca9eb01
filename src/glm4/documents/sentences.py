"""`split_sentences`: a text cut into sentences, Chinese and English, by rules; every character keeps its place.

Decimal numbers, abbreviations, initials, ellipses, web addresses and quotation marks after the full stop do not mislead
it; a blank line, a list item and a line that a Markdown table or heading ends always end a sentence.

Not covered: languages without these marks (Thai), and full stops that only their meaning explains ("in the U.S. The").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CLOSING = "”’\"'）)】］]》」』〉*_"
# A full stop of East Asian writing, any number of them; or marks of the west before white space or the end. Quotation
# marks and brackets after the mark belong to the sentence.
_END = re.compile(
    rf"(?:[。！？；…]+[。！？；…!?]*[{re.escape(_CLOSING)}]*)"
    rf"|(?:[.!?]+[{re.escape(_CLOSING)}]*(?=\s|$))"
    rf"|(?:[.!?]+[{re.escape(_CLOSING)}]*(?=[\u2e80-\u9fff]))"
)
_LINE_END = re.compile(
    r"\n\s*\n|\n(?=\s*(?:[-*+•|#>]|\d{1,3}[.)、]\s|[（(]?[一二三四五六七八九十]+[)）、]))|(?<=\|)\n|\n(?=\|)"
)
_LAST_WORD = re.compile(r"[^\s(\[（“\"']*$")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+")
_NUMBERED = re.compile(r"\d{1,3}\.|[IVXivx]{1,5}\.")
_ABBREVIATION_WORDS = """
adj. al. appx. approx. apr. art. assn. assoc. aug. ave. bros. ca. capt. cf. ch. chap. co. col. comm. corp.
dec. dept. dr. ed. eds. eq. eqs. esp. est. et. etc. ex. excl. feb. fig. figs. fr. gen. gov. hon. ibid. inc.
incl. jan. jr. lt. ltd. maj. mar. max. min. mr. mrs. ms. mt. no. nos. nov. oct. op. p. para. ph. pl. pp. pres.
prof. pt. pub. ref. refs. rep. rev. sec. sen. sep. sept. sgt. sr. st. supp. tab. tbl. univ. viz. vol. vols.
vs.
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_WORDS.split())
# After these a sentence may well begin, so a capital letter decides.
_OFTEN_LAST = frozenset(("etc.", "co.", "inc.", "ltd.", "corp.", "jr.", "sr.", "al."))


@dataclass(frozen=True)
class Sentence:
    """A sentence; `text[start:end]` of the whole text is its text, without white space at its ends."""

    start: int
    end: int


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order.

    They do not overlap, and only white space lies between them, before the first and after the last.
    """
    sentences = []
    for start, end in _pieces(text):
        piece = text[start:end]
        stripped = piece.strip()
        if stripped:
            first = start + len(piece) - len(piece.lstrip())
            sentences.append(Sentence(first, first + len(stripped)))
    return sentences


def sentence_starts(text: str) -> list[int]:
    """Where the sentences of a text begin, in ascending order."""
    return [sentence.start for sentence in split_sentences(text)]


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in _LINE_END.finditer(text):
        yield from _within(text, start, line.end())
        start = line.end()
    yield from _within(text, start, len(text))


def _within(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    begin = start
    for mark in _END.finditer(text, start, end):
        if _ends(text, begin, mark, end):
            yield begin, mark.end()
            begin = mark.end()
    yield begin, end


def _ends(text: str, begin: int, mark: re.Match[str], end: int) -> bool:
    """Whether a sentence ends at a mark."""
    shown = mark[0].rstrip(_CLOSING)
    following = text[mark.end() : min(end, mark.end() + 80)].lstrip()
    if mark[0] != shown and following[:1] in ("，", "、", ",", "：", ":"):
        return False  # a quotation inside a sentence
    if not shown.endswith("."):
        return not (shown[-1] in "!?…" and following[:1].islower())
    if not following:
        return True
    if following[0].islower() or following[0] in ",;:)":
        return False
    if shown != ".":  # an ellipsis before a capital letter
        return True
    last = _LAST_WORD.search(text, max(begin, mark.start() - 40), mark.start())
    word = (last[0] if last else "") + "."
    if word.lower() in _OFTEN_LAST or (len(word) > 4 and _INITIALS.fullmatch(word)):
        return following[0].isupper() and not _is_name(following)
    if word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word):
        return False
    return not (_NUMBERED.fullmatch(word) and not text[begin : mark.start() + 1].strip()[:-1].strip(word[:-1]))


def _is_name(following: str) -> bool:
    """Whether a capital letter is that of another initial: "U.S. F. Miller"."""
    return _INITIALS.match(following) is not None
