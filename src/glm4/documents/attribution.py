"""`Attribution`: which sentences of a document say what a sentence of an answer says, by their words.

For models that were not trained to cite: asked to, small ones write numbers that mean nothing. Words cannot lie so: a
sentence is cited only if it has most of what is said, and every number in it.

Not covered: what is said in other words, or in another language, is cited as nothing; a denial has the words of what it
denies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from glm4.documents.bm25 import terms

MOST_CITED = 3
_LEAST_COVERED = 0.5
"""Of a sentence's words, weighted by how rare they are, that its citations must have together."""
_LEAST_MORE = 0.2
"""That a further citation must add."""


class Attribution:
    """An index over the sentences that a model was shown."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self._terms = [frozenset(terms(sentence)) for sentence in sentences]
        self._holders: dict[str, list[int]] = {}
        for at, known in enumerate(self._terms):
            for term in known:
                self._holders.setdefault(term, []).append(at)
        self._weights = {term: math.log(1 + len(self._terms) / len(held)) for term, held in self._holders.items()}
        self._unknown = math.log(1 + max(1, len(self._terms)))

    def cited(self, sentence: str) -> tuple[int, ...]:
        """The sentences that say it, in their order; none if they do not."""
        said = set(terms(sentence))
        left = {term: self._weights.get(term, self._unknown) for term in said}
        total = math.fsum(left[term] for term in sorted(left))
        found: list[int] = []
        gains: dict[int, float] = {}
        for term in sorted(said):  # sums of the same order are the same
            for at in self._holders.get(term, ()):
                gains[at] = gains.get(at, 0.0) + left[term]
        while total and len(found) < MOST_CITED:
            best = max(gains, key=lambda at: (gains[at], -at), default=-1)
            if best < 0 or gains[best] < _LEAST_MORE * total:
                break
            found.append(best)
            for term in sorted(self._terms[best] & left.keys()):
                weight = left.pop(term)
                for at in self._holders[term]:
                    gains[at] -= weight
        covered = total - math.fsum(left[term] for term in sorted(left))
        if not found or covered < _LEAST_COVERED * total or any(term.isdigit() for term in left):
            return ()
        return tuple(sorted(found))
