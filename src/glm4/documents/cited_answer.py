"""Answers that cite numbered sentences: `<statement>…<cite>[3-5]</cite></statement>`, as LongCite was trained to write.

Whatever is written is read: tags that are left open keep what they hold. Source: THUDM/LongCite.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_SPANS = 3
"""Citations of one statement that count; further ones are dropped, as LongCite's own code does."""

LONGCITE_PROMPT = (
    "Please answer the user's question based on the following document. When a sentence S in your response uses"
    " information from some chunks in the document (i.e., <C{s1}>-<C_{e1}>, <C{s2}>-<C{e2}>, ...), please append these"
    ' chunk numbers to S in the format "<statement>{S}<cite>[{s1}-{e1}][{s2}-{e2}]...</cite></statement>". You must'
    " answer in the same language as the user's question.\n\n[Document Start]\n"
)
"""What LongCite was trained on, to the letter."""

PROMPT = (
    "Answer the question at the end from this document alone, in the language of the question. If the document does not"
    " say it, say so.\n\n[Document Start]\n"
)
"""What other models are told; see `attribution` for their citations."""

_TAGS = ("<statement>", "</statement>", "<cite>", "</cite>")
_STRICT = re.compile(r"\[([0-9]+)-([0-9]+)\]")
_TOLERANT = re.compile(r"([0-9]+)(?:\s*[-–~]\s*([0-9]+))?")
_LEAST_OUTSIDE = 5  # characters between statements that make a statement of their own


@dataclass(frozen=True)
class Statement:
    """A sentence of an answer.

    Attributes:
        spans: first and last sentence of the document that each citation names.
        cites: False for text that is no statement (line breaks, a short tail).
        truncated: the answer ended inside it.
        repaired: its citations are not in the form that was asked for, but could be read.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    cites: bool = True
    truncated: bool = False
    repaired: bool = False


def marked(chunks: Sequence[str], first: int = 0) -> str:
    """Chunks of a document, each behind its number."""
    return "".join(f"<C{first + index}>{chunk}" for index, chunk in enumerate(chunks))


def prompt(document: str, question: str, *, longcite: bool = False) -> str:
    """The whole prompt. The document precedes the question, so that the next question finds it cached.

    Args:
        document: from `marked`.
    """
    return (LONGCITE_PROMPT if longcite else PROMPT) + document + "\n[Document End]\n\n" + question


def read_answer(answer: str, last: int, *, strict: bool = False) -> list[Statement]:
    """The statements of an answer.

    Args:
        last: number of the document's last sentence.
        strict: as LongCite's own code reads it, for comparable scores: a citation in another form is none, duplicates
            stay, and a statement that is cut off is lost.
    """
    found: list[Statement] = []
    at = 0
    while True:
        start = answer.find(_TAGS[0], at)
        outside = answer[at:] if start < 0 else answer[at:start]
        if not strict or start >= 0 or found:
            found += _outside(outside, strict=strict)
        if start < 0:
            return found
        body_at = start + len(_TAGS[0])
        end = answer.find(_TAGS[1], body_at)
        if end < 0:
            if not strict:
                found += _inside(_without_partial_tag(answer[body_at:]), last, strict=False, truncated=True)
            return found
        found += _inside(answer[body_at:end], last, strict=strict, truncated=False)
        at = end + len(_TAGS[1])


def _outside(text: str, *, strict: bool) -> list[Statement]:
    if not strict:
        text = _without_partial_tag(text)
        for tag in _TAGS:  # one without its partner
            text = text.replace(tag, "")
    if len(text.strip()) > _LEAST_OUTSIDE:
        return [Statement(text)]
    return [Statement(text, cites=False)] if text else []


def _inside(body: str, last: int, *, strict: bool, truncated: bool) -> list[Statement]:
    text, cited, at = "", "", 0
    while (start := body.find(_TAGS[2], at)) >= 0:
        text += body[at:start]
        end = body.find(_TAGS[3], start)
        cited += body[start + len(_TAGS[2]) : end if end >= 0 else len(body)]
        at = end + len(_TAGS[3]) if end >= 0 else len(body)
    text += body[at:]
    if not text:
        return []
    spans, repaired = _spans(cited, last, strict=strict)
    return [Statement(text, spans, truncated=truncated, repaired=repaired)]


def _spans(cited: str, last: int, *, strict: bool) -> tuple[tuple[tuple[int, int], ...], bool]:
    numbers = [(int(first), int(end)) for first, end in _STRICT.findall(cited)]
    repaired = False
    if not strict:
        read = [(int(first), int(end or first)) for first, end in _TOLERANT.findall(cited)]
        repaired = read != numbers
        numbers = read
    kept: list[tuple[int, int]] = []
    for first, end in numbers:
        if first > last or end < first:
            continue
        span = (first, min(end, last))
        if kept and span[0] == kept[-1][1] + 1:
            kept[-1] = (kept[-1][0], span[1])
        elif strict or span not in kept:
            kept.append(span)
    return tuple(kept[:MOST_SPANS]), repaired


def _without_partial_tag(text: str) -> str:
    """The text without the beginning of a tag at its end."""
    at = text.rfind("<")
    return text[:at] if at >= 0 and any(tag.startswith(text[at:]) for tag in _TAGS) else text


@dataclass(frozen=True)
class Cited:
    """A place in the visible text that cites sentences.

    Attributes:
        start: first character of the statement, in the visible text; `end` is behind its last.
    """

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]


@dataclass
class AnswerStream:
    """An answer as it arrives: visible text without tags, and citations where a statement ends.

    Attributes:
        raw: everything so far.
        visible: characters of visible text so far.
    """

    last: int
    raw: str = ""
    visible: int = 0
    _buffer: str = ""
    _cite: str | None = None
    _started: int = 0
    _cited: list[str] = field(default_factory=list)

    def push(self, text: str) -> list[str | Cited]:
        """Take more; returns text and citations that are now certain."""
        self.raw += text
        self._buffer += text
        return self._run(final=False)

    def finish(self) -> list[str | Cited]:
        """The answer has ended; returns what was held back."""
        events = self._run(final=True)
        return events + self._end()

    def _run(self, *, final: bool) -> list[str | Cited]:
        events: list[str | Cited] = []
        while self._buffer:
            at = self._buffer.find("<")
            plain = self._buffer if at < 0 else self._buffer[:at]
            self._plain(plain, events)
            self._buffer = self._buffer[len(plain) :]
            tag = next((tag for tag in _TAGS if self._buffer.startswith(tag)), None)
            if tag is not None:
                self._buffer = self._buffer[len(tag) :]
                events += self._tag(tag)
            elif self._buffer and any(tag.startswith(self._buffer) for tag in _TAGS):
                if final:
                    self._buffer = ""
                break
            elif self._buffer:
                self._plain("<", events)
                self._buffer = self._buffer[1:]
        return events

    def _plain(self, text: str, events: list[str | Cited]) -> None:
        if self._cite is not None:
            self._cite += text
        elif text:
            self.visible += len(text)
            events.append(text)

    def _tag(self, tag: str) -> list[str | Cited]:
        if tag == _TAGS[2]:
            self._cite = self._cite or ""
        elif tag == _TAGS[3]:
            self._cited.append(self._cite or "")
            self._cite = None
        else:
            events = self._end()
            self._started = self.visible
            return events
        return []

    def _end(self) -> list[str | Cited]:
        """The citations of the statement that ends here."""
        spans, _ = _spans("".join(self._cited) + (self._cite or ""), self.last, strict=False)
        self._cite, self._cited = None, []
        return [Cited(self._started, self.visible, spans)] if spans else []
