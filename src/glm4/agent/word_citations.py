"""Citations of files by words, for answers of models that were shown the user's files and cite nothing.

Small models that are asked to cite copy what they were shown, or write numbers that mean nothing, so most are not
asked: what they say is compared with the files. See `documents.attribution` for what that does not find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glm4.agent.cited_files import MOST_QUOTED
from glm4.agent.events import CitationAdded
from glm4.documents.attribution import Attribution
from glm4.documents.citations import Citation, Source
from glm4.documents.sentences import split_sentences

MOST_STATEMENTS = 100
"""Sentences of an answer that are compared."""
MOST_COMPARED = 400_000
"""Characters of files that they are compared with: about a second."""
_CODE = re.compile(r"^```.*?(?:^```|\Z)", re.DOTALL | re.MULTILINE)


def cited_by_words(parts: Sequence[Mapping[str, Any]], sources: Sequence[Source]) -> list[CitationAdded]:
    """What the text of a turn has from files; takes up to a second, so not on an event loop.

    Args:
        parts: of `Transcript.as_dict`; those that have citations are left as they are.
        sources: of the conversation.
    """
    shown = list(_sentences([source for source in sources if source.file is not None]))
    said = [
        (index, part["text"])
        for index, part in enumerate(parts)
        if part["kind"] == "text" and not part.get("citations") and part["text"].strip()
    ]
    if not shown or not said:
        return []
    attribution = Attribution([text for _, text in shown])
    return [
        CitationAdded(index, citation)
        for index, text in said
        for start, end in _statements(text)
        for citation in _citations(text[start:end], start, end, attribution, shown)
    ]


def _sentences(sources: Sequence[Source]) -> Iterator[tuple[Source, str]]:
    left = MOST_COMPARED
    for source in sources:
        left -= len(source.text)
        if left < 0:
            return
        for one in split_sentences(source.text):
            yield source, source.text[one.start : one.end]


def _statements(text: str) -> list[tuple[int, int]]:
    words = _CODE.sub(lambda match: "\n" * len(match[0]), text)  # every character keeps its place
    return [(one.start, one.end) for one in split_sentences(words)][:MOST_STATEMENTS]


def _citations(
    said: str, start: int, end: int, attribution: Attribution, shown: Sequence[tuple[Source, str]]
) -> Iterator[Citation]:
    """One for each source, with the first run of its sentences that say it."""
    runs: dict[int, list[int]] = {}
    for at in attribution.cited(said):
        run = runs.setdefault(shown[at][0].n, [])
        if not run or at == run[-1] + 1:
            run.append(at)
    for run in runs.values():
        source = shown[run[0]][0]
        quoted = " ".join(" ".join(shown[at][1].split()) for at in run)[:MOST_QUOTED]
        yield Citation(
            Source(source.n, source.title, source.url, source.file, source.page, source.section, quoted), start, end
        )
