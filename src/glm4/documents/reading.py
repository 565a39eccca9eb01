"""How to read documents for a question: whole if they fit the model's context, else honestly in part.

- whole: every sentence is shown. The next question finds the documents in the prefix cache.
- sections: the passages that have the question's words (BM25; and embeddings, if given), in the documents' order.
- summary: every part is read, for notes; the answer rests on the notes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from glm4.documents.bm25 import BM25, fused
from glm4.documents.document import Document
from glm4.documents.passages import Passage, Sentence, passages_of, places_of, ranges
from glm4.errors import InvalidRequestError

Strategy = Literal["whole", "sections", "summary"]
STRATEGIES: tuple[Strategy, ...] = ("whole", "sections", "summary")
Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]

PASSAGE_TOKENS = 400
GAP = "\n[…]\n"
"""Stands where sentences were left out."""

_SUMMARY = re.compile(
    r"\b(summar(y|ies|i[sz]e)|overview|gist|outline|tl;?dr|key points|main (points|ideas))\b"
    r"|总结|摘要|概括|概述|综述|要点|大意",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ReadingPlan:
    """What is read for a question.

    Attributes:
        shown: the sentences that are read, as places in the list of all sentences; ascending.
        parts: with "summary", the parts that are read one by one.
        matched: with "sections": whether a passage has the question's words; otherwise the beginning is shown.
    """

    strategy: Strategy
    shown: tuple[int, ...]
    parts: tuple[Passage, ...] = ()
    matched: bool = True


class Sections:
    """The passages of documents, and which words they have; made when first needed, and kept between questions."""

    def __init__(self, documents: Sequence[Document], sentences: Sequence[Sentence]) -> None:
        self._documents, self._sentences = documents, sentences
        self._most_tokens = 0
        self._made: tuple[list[Passage], list[str], BM25] = ([], [], BM25(()))

    def of(self, most_tokens: int) -> tuple[list[Passage], list[str], BM25]:
        """Passages of at most so many tokens, their texts below their headings, and the index over these."""
        if most_tokens != self._most_tokens:
            passages = passages_of(self._documents, self._sentences, most_tokens)
            texts = [self._text(passage) for passage in passages]
            self._made = passages, texts, BM25(texts)
            self._most_tokens = most_tokens
        return self._made

    def _text(self, passage: Passage) -> str:
        first, last = self._sentences[passage.first], self._sentences[passage.end - 1]
        document = self._documents[first.document]
        return f"{document.place(first.start).section or ''}\n{document.text[first.start : last.end]}"


def plan_reading(
    documents: Sequence[Document],
    sentences: Sequence[Sentence],
    question: str,
    *,
    budget: int,
    strategy: Strategy | None = None,
    embed: Embed | None = None,
    sections: Sections | None = None,
) -> ReadingPlan:
    """Choose what to read.

    Args:
        budget: tokens that sentences may take in one prompt.
        strategy: None chooses: whole if all fits, summary if the question asks for one, else sections.
        embed: texts → vectors, from a model that was trained for it.
        sections: of the same documents and sentences, kept from an earlier question.

    Raises:
        InvalidRequestError: "whole" is asked for and does not fit; or not even one sentence fits.
    """
    total = sum(sentence.tokens for sentence in sentences)
    if not sentences or budget < min(sentence.tokens for sentence in sentences):
        problem = "there is no text in it" if not sentences else f"there are only {max(0, budget)} tokens left for it"
        raise InvalidRequestError(f"nothing of the document can be read: {problem}", param="documents")
    if strategy is None:
        strategy = "whole" if total <= budget else "summary" if _SUMMARY.search(question) else "sections"
    if strategy == "whole":
        if total > budget:
            raise InvalidRequestError(
                f"the text has about {total:,} tokens, and the model has room for {budget:,}; read it by sections or as"
                " a summary, or give the model a longer context",
                param="strategy",
            )
        return ReadingPlan("whole", tuple(range(len(sentences))))
    if strategy == "summary":
        parts = tuple(_parts(sentences, budget))
        return ReadingPlan("summary", tuple(at for part in parts for at in range(part.first, part.end)), parts)
    kept = sections or Sections(documents, sentences)
    passages, texts, words = kept.of(min(PASSAGE_TOKENS, budget))
    order = _ranked(texts, words, question, embed)
    matched = bool(order)
    shown: list[int] = []
    left = budget
    for index in order or range(len(passages)):
        if passages[index].tokens <= left:
            left -= passages[index].tokens
            shown += range(passages[index].first, passages[index].end)
        elif not matched:
            break
    return ReadingPlan("sections", tuple(sorted(shown)), matched=matched)


def _ranked(texts: Sequence[str], words: BM25, question: str, embed: Embed | None) -> list[int]:
    found = words.best(question)
    if embed is None:
        return found
    wanted, *vectors = embed([question, *texts])
    near = sorted(range(len(texts)), key=lambda at: -_cosine(wanted, vectors[at]))
    return fused([found, near])


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    size = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def _parts(sentences: Sequence[Sentence], budget: int) -> list[Passage]:
    """All sentences in parts of nearly equal size, within documents. Sentences that fit no prompt are left out."""
    parts: list[Passage] = []
    first, tokens = 0, 0
    for at, sentence in enumerate(sentences):
        other = at > first and sentences[first].document != sentence.document
        if at > first and (other or tokens + sentence.tokens > budget):
            parts.append(Passage(first, at, tokens))
            first, tokens = at, 0
        if sentence.tokens > budget:
            first = at + 1
            continue
        tokens += sentence.tokens
    if first < len(sentences):
        parts.append(Passage(first, len(sentences), tokens))
    return parts


def shown_text(
    documents: Sequence[Document], sentences: Sequence[Sentence], shown: Sequence[int], *, numbered: bool
) -> str:
    """The sentences that are shown; `numbered`, each is behind its number, which counts what is shown, from 0."""
    pieces: list[str] = []
    for number, at in enumerate(shown):
        sentence = sentences[at]
        document = documents[sentence.document]
        follows = number > 0 and shown[number - 1] == at - 1 and sentences[at - 1].document == sentence.document
        if not follows:
            new = number == 0 or sentences[shown[number - 1]].document != sentence.document
            if new and len(documents) > 1:
                pieces.append(f"\n\n[{document.name}]\n" if number else f"[{document.name}]\n")
            elif number or sentence.start:
                pieces.append(GAP)
        text = document.text[sentence.start : sentence.end]
        pieces.append(f"<C{number}>{text}" if numbered else text)
    return "".join(pieces)


def left_out(documents: Sequence[Document], sentences: Sequence[Sentence], shown: Sequence[int]) -> list[str]:
    """What is not shown, for people: a line per document with a gap."""
    kept = set(shown)
    lines: list[str] = []
    for index, document in enumerate(documents):
        own = [at for at, sentence in enumerate(sentences) if sentence.document == index]
        missing = [at for at in own if at not in kept]
        if not missing:
            continue
        line = f"{document.name}: {len(own) - len(missing):,} of {len(own):,} sentences were read"
        pages = {place.page for _, place in places_of(documents, (sentences[at] for at in own if at in kept))}
        known = [page for page in pages if page is not None]
        if known and document.num_pages:
            line += f", from {'page' if len(known) == 1 else 'pages'} {ranges(known)} of {document.num_pages}"
        lines.append(line)
    return lines
