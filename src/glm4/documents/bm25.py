"""`BM25`: which passages have the words of a question, in any language. No model is needed.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

_K1 = 1.5
_B = 0.75
# Scripts without spaces between words: their pairs of characters take the place of words.
_DENSE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_DENSE}]+|[^\W_{_DENSE}]+")
_IS_DENSE = re.compile(rf"[{_DENSE}]")
_LONGEST_KNOWN = 40  # characters; what strangers send must not fill the memory
_COMMON_ENGLISH = re.compile(
    "an?|and|are|as|at|be|by|do(es)?|for|from|how|i[nst]|its|o[fnr]|th(at|e|is)|to|was|were|what|when|where|which|who|why"
    "|will|with"
)
_COMMON_CHINESE = ("的", "了", "是", "在", "和", "吗", "什么", "怎么", "哪些", "如何")


def terms(text: str) -> list[str]:
    """The words of a text, in lower case; of Chinese, Japanese, Korean and Thai the pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        found += _known_terms_of(word) if len(word) <= _LONGEST_KNOWN else _terms_of(word)
    return found


def _terms_of(word: str) -> tuple[str, ...]:
    dense = _IS_DENSE.match(word) is not None
    found = [word[at : at + 2] for at in range(max(1, len(word) - 1))] if dense else [_stem(word)]
    return tuple(term for term in found if term not in _COMMON_CHINESE and not _COMMON_ENGLISH.fullmatch(term))


_known_terms_of = lru_cache(1 << 15)(_terms_of)  # long texts repeat their words


def _stem(word: str) -> str:
    """The word without the endings that most often hide a match in English."""
    for ending, least in (("ies", 5), ("ing", 6), ("ed", 5), ("es", 5), ("s", 4), ("e", 4)):
        if len(word) >= least and word.endswith(ending) and not word.endswith("ss"):
            return word.removesuffix(ending) + ("y" if ending == "ies" else "")
    return word


class BM25:
    """An index over passages.

    Args:
        passages: their texts.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        self._counts = [Counter(terms(passage)) for passage in passages]
        self._lengths = [sum(counts.values()) for counts in self._counts]
        self._mean = max(1.0, sum(self._lengths) / max(1, len(self._lengths)))
        self._rarity: dict[str, float] = {}
        holders = Counter(term for counts in self._counts for term in counts)
        for term, number in holders.items():
            self._rarity[term] = math.log(1 + (len(self._counts) - number + 0.5) / (number + 0.5))

    def scores(self, question: str) -> list[float]:
        """The score of each passage; 0 without a common word."""
        wanted = set(terms(question))
        return [self._score(counts, length, wanted) for counts, length in zip(self._counts, self._lengths, strict=True)]

    def best(self, question: str) -> list[int]:
        """Passages with a common word, the best first; equal ones in their order."""
        scores = self.scores(question)
        return sorted((at for at, score in enumerate(scores) if score > 0), key=lambda at: -scores[at])

    def _score(self, counts: Counter[str], length: int, wanted: Iterable[str]) -> float:
        rest = _K1 * (1 - _B + _B * length / self._mean)
        return math.fsum(
            self._rarity[term] * counts[term] * (_K1 + 1) / (counts[term] + rest)
            for term in sorted(wanted)
            if counts[term]
        )


def fused(rankings: Sequence[Sequence[int]], constant: int = 60) -> list[int]:
    """Several rankings of the same passages as one, by reciprocal rank.

    Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (2009).
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking):
            scores[passage] = scores.get(passage, 0.0) + 1.0 / (constant + rank + 1)
    return sorted(scores, key=lambda at: (-scores[at], at))
