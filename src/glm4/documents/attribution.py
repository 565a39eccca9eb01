"""`Attribution`: which sentences of a document say what a sentence of an answer says, by their words.

For models that were not trained to cite: asked to, small ones write numbers that mean nothing. Words cannot lie so: a
sentence is cited only if it has most of what is said, and every number in it.

Not covered: what is said in other words, or in another language, is cited as nothing; a denial has the words of what it
denies.
"""

from __future__ import annotations

import math
from collections import Counter
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
        holders = Counter(term for known in self._terms for term in known)
        self._weights = {term: math.log(1 + len(self._terms) / number) for term, number in holders.items()}
        self._unknown = math.log(1 + max(1, len(self._terms)))

    def cited(self, sentence: str) -> tuple[int, ...]:
        """The sentences that say it, in their order; none if they do not."""
        said = set(terms(sentence))
        left = {term: self._weights.get(term, self._unknown) for term in said}
        total = math.fsum(left[term] for term in sorted(left))
        found: list[int] = []
        while total and len(found) < MOST_CITED:
            gains = [math.fsum(left[term] for term in sorted(known & left.keys())) for known in self._terms]
            best = max(range(len(gains)), key=gains.__getitem__, default=-1)
            if best < 0 or gains[best] < _LEAST_MORE * total:
                break
            found.append(best)
            for term in self._terms[best]:
                left.pop(term, None)
        covered = total - math.fsum(left[term] for term in sorted(left))
        if not found or covered < _LEAST_COVERED * total or any(term.isdigit() for term in left):
            return ()
        return tuple(sorted(found))
