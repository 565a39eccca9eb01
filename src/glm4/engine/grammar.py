"""`GrammarState`: a sequence's position in its grammar.

It runs inside the step, on the engine's thread, which all sequences share. Over 50,000 tokens of schemas,
expressions, tools and Lark grammars (`benchmarks/grammar.py`), the median takes 0.06 ms and the 99th percentile 2 ms,
less than 1% of a step of the 9B shape in int4; the longest took 0.02 s. A grammar designed to be slow takes up to 0.2 s
at a time or, if it is ambiguous, longer with every token, eventually seconds: past `MOST_SECONDS` its text ends, so
other sequences do not wait for it for long.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from glm4.engine.protocol import TokenConstraint
from glm4.errors import GrammarError

# CPU time of this thread for one mask or one run of forced tokens; as long as a step of the 9B shape.
MOST_SECONDS = 0.25


class GrammarState:
    """One sequence's matcher, and the tokens it forces next. Every method may raise GrammarError.

    Args:
        constraint: the grammar.
        end_ids: ids that are allowed wherever the text is complete.
        most_seconds: processor time of one mask, or of one run of forced tokens; None means `MOST_SECONDS`.

    Attributes:
        forced: the only tokens that can come next, in order; not appended yet.
    """

    def __init__(
        self, constraint: TokenConstraint, end_ids: NDArray[np.int64], most_seconds: float | None = None
    ) -> None:
        self._matcher = constraint.start()  # ahead of the sequence by `forced`
        self._end_ids = end_ids
        self._most_seconds = MOST_SECONDS if most_seconds is None else most_seconds
        self.forced: deque[int] = deque()
        self._accept_forced()

    def accept(self, token: int) -> None:
        """Record an appended token (the first of `forced`, or an allowed one); finds what is forced after it."""
        if self.forced:
            self.forced.popleft()
            return
        if not self._matcher.accept((token,)):
            raise GrammarError("the grammar refuses a token that it allowed")
        self._accept_forced()

    def _accept_forced(self) -> None:
        before = time.thread_time()
        while tokens := self._matcher.forced():
            if self._matcher.accept(tokens) != len(tokens):
                raise GrammarError("the grammar refuses a token that it forces")
            self.forced += tokens
            self._check_seconds(before)

    def finished(self) -> bool:
        """True if nothing may follow."""
        return not self.forced and self._matcher.is_finished()

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next, if none is forced and the text is not finished: bool [vocab_size]."""
        before = time.thread_time()
        mask = self._matcher.allowed()
        self._check_seconds(before)
        if self._matcher.is_complete():
            mask[self._end_ids] = True
        if not mask.any():
            raise GrammarError("the grammar allows no token here")
        return mask

    def _check_seconds(self, before: float) -> None:
        if time.thread_time() - before > self._most_seconds:
            raise GrammarError("the grammar takes too long to follow")
