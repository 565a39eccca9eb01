"""How alike an answer and its reference are, in numbers from 0 to 1. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
CHRF_ORDER, CHRF_BETA = 6, 2.0


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; Chinese and Japanese, which have no spaces, character by character."""
    return _WORDS.findall(text.lower())


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), as Google's rouge_score without stemming."""
    ours, theirs = words(answer), words(reference)
    common = _common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def chrf(answer: str, reference: str) -> float:
    """F2 of n-grams of 1 to 6 characters without spaces (Popović 2015), as sacrebleu's chrF2 of one sentence."""
    ours, theirs = ("".join(text.split()) for text in (answer, reference))
    precision = recall = 0.0
    orders = 0
    for size in range(1, CHRF_ORDER + 1):
        mine, wanted = _grams(ours, size), _grams(theirs, size)
        if not mine or not wanted:
            continue
        orders += 1
        common = (mine & wanted).total()
        precision += common / mine.total()
        recall += common / wanted.total()
    if precision + recall == 0:
        return 0.0
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) / orders


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def _common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for index, other in enumerate(theirs, 1):
            diagonal, row[index] = row[index], diagonal + 1 if word == other else max(row[index], row[index - 1])
    return row[-1]
