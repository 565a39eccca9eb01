"""What a model is shown of documents: numbered sentences, grouped into passages that are found together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from glm4.documents.document import Document, Place

Split = Callable[[str], Sequence[int]]
"""A text → where its sentences begin, in ascending order."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document, with the white space behind it.

    Attributes:
        document: which one.
        start: first character in the document's text; `end` is behind its last.
        tokens: of it, and of its number if it is shown with one; at most.
    """

    document: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of one section: `first` to before `end`, as places in a list of sentences."""

    first: int
    end: int
    tokens: int


def sentences_of(
    documents: Sequence[Document],
    split: Split,
    count: Callable[[Sequence[str]], Sequence[int]],
    *,
    numbered: bool = True,
) -> list[Sentence]:
    """All sentences of documents; text before the first one belongs to it.

    Args:
        count: texts → tokens of each.
        numbered: each will be shown behind its number, which counts.
    """
    found: list[Sentence] = []
    for index, document in enumerate(documents):
        starts = [at for at in split(document.text) if at < len(document.text)]
        if not starts and document.text.strip():
            starts = [0]
        if not starts:
            continue
        starts[0] = 0
        ends = [*starts[1:], len(document.text)]
        texts = [document.text[start:end] for start, end in zip(starts, ends, strict=True)]
        tokens = count([f"<C{len(found) + at}>{text}" if numbered else text for at, text in enumerate(texts)])
        found += [Sentence(index, *place) for place in zip(starts, ends, tokens, strict=True)]
    return found


def passages_of(
    documents: Sequence[Document], sentences: Sequence[Sentence], most_tokens: int, *, within_pages: bool = False
) -> list[Passage]:
    """The sentences in passages: not across sections, and of at most so many tokens, if no sentence alone has more.

    Args:
        within_pages: nor across pages, for what is cited by passages.
    """
    passages: list[Passage] = []
    places = [
        (document, place.section, place.page if within_pages else None)
        for document, place in places_of(documents, sentences)
    ]
    for _, group in groupby(range(len(sentences)), key=places.__getitem__):
        first, tokens = -1, 0
        for at in group:
            if first < 0 or tokens + sentences[at].tokens > most_tokens:
                if first >= 0:
                    passages.append(Passage(first, at, tokens))
                first, tokens = at, 0
            tokens += sentences[at].tokens
            end = at + 1
        passages.append(Passage(first, end, tokens))
    return passages


def places_of(documents: Sequence[Document], sentences: Iterable[Sentence]) -> list[tuple[int, Place]]:
    """Where sentences stand: document and place."""
    return [(s.document, documents[s.document].place(s.start)) for s in sentences]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers for people: "1, 3-5"."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        values = [value for _, value in run]
        parts.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return ", ".join(parts)
