"""`Guide`: a sequence's way through its grammar, worked out beside the engine's thread.

Which tokens may come next takes microseconds, but now and then many milliseconds, and the other sequences must not wait
for it. So a guide does its work on an executor while the model computes, and the engine asks for results only when they
are there. Each batch of new tokens is one job: accept them, find what is forced after them (`known`), then which tokens
may follow (`ready`).

Guesses are followed ahead: `look_ahead` finds what may come after each guessed token and takes the guesses back. Where
the matcher cannot go back, or not follow a guess, it is made anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.engine.protocol import TokenConstraint, TokenMatcher
from glm4.errors import GrammarError

# How long a step may wait for what is forced: a hundredth of a usual step, and a thousand times what it usually takes.
PATIENCE = 0.002


@dataclass(frozen=True)
class _Known:
    """What can only follow the tokens so far; `finished`: and nothing after that."""

    forced: tuple[int, ...]
    finished: bool


class Guide:
    """One sequence's matcher, and what is known of the tokens that may come next.

    Args:
        constraint: the grammar.
        executor: does the work.
        end_ids: ids that may come wherever the text is complete.

    Attributes:
        queue: forced tokens that have not been taken yet.
    """

    def __init__(self, constraint: TokenConstraint, executor: Executor, end_ids: NDArray[np.int64]) -> None:
        self._constraint = constraint
        self._executor = executor
        self._end_ids = end_ids
        self._matcher: TokenMatcher | None = None
        self._taken: list[int] = []  # all tokens the matcher has accepted, guesses excepted
        self._finished = False
        self._can_go_back = True
        self.queue: deque[int] = deque()
        self._known: Future[_Known] | None = Future()
        self._ready: Future[NDArray[np.bool_] | None] = Future()
        self._ahead: Future[list[NDArray[np.bool_] | None]] | None = None
        executor.submit(self._follow, (), self._known, self._ready)

    # For the engine's thread

    def advance(self, token_ids: Sequence[int]) -> None:
        """These tokens came after those of the queue, each of them allowed."""
        self._ahead = None
        self._known, self._ready = Future(), Future()
        self._executor.submit(self._follow, tuple(token_ids), self._known, self._ready)

    def look_ahead(self, draft: Sequence[int]) -> None:
        """Find out what may come after each of these guesses."""
        self._ahead = Future()
        self._executor.submit(self._look_ahead, tuple(draft), self._ready, self._ahead)

    def settle(self) -> bool:
        """Take in what is forced, if it is known by now; True when it is.

        Raises:
            GrammarError: the grammar cannot be followed any further.
        """
        if self._known is not None and self._known.done():
            known = self._known.result()
            self.queue.extend(known.forced)
            self._finished = known.finished
            self._known = None
        return self._known is None

    @property
    def finished(self) -> bool:
        """True when everything is settled and taken, and nothing may follow."""
        return self._known is None and self._finished and not self.queue

    @property
    def pending(self) -> Future[Any] | None:
        """What `settle` waits for, if anything."""
        return self._known

    @property
    def can_look_ahead(self) -> bool:
        """True when nothing is forced next as far as is known, and guesses can be followed and taken back now."""
        is_free = self._ahead is None or self._ahead.done()  # else a preempted sequence comes back too early
        return self._can_go_back and is_free and self._known is None and not self.queue

    @property
    def waited_for(self) -> list[Future[Any]]:
        """What must be done before a token can be sampled; empty if it is."""
        futures: list[Future[Any]] = [self._ready] if self._ahead is None else [self._ready, self._ahead]
        return [future for future in futures if not future.done()]

    def allowed(self, position: int) -> NDArray[np.bool_] | None:
        """Tokens that may come at the next position (0) or after that many guesses; bool [vocab_size].

        None: they are forced there, so that nothing is to be sampled.

        Raises:
            GrammarError: the grammar cannot be followed any further.
        """
        if position == 0:
            return self._ready.result()
        steps = self._ahead.result() if self._ahead is not None else []
        return steps[position - 1] if position <= len(steps) else None

    # For the executor's threads

    def _follow(self, token_ids: Sequence[int], known: Future[_Known], ready: Future[NDArray[np.bool_] | None]) -> None:
        try:
            matcher = self._matcher = self._matcher or self._constraint.start()
            _accept(matcher, token_ids)
            forced: list[int] = []
            while more := matcher.forced():
                _accept(matcher, more)
                forced += more
            self._taken += (*token_ids, *forced)
            finished = matcher.is_finished()
            known.set_result(_Known(tuple(forced), finished))
            ready.set_result(None if finished else self._mask(matcher))
        except BaseException as error:  # it belongs to whoever asks for the result
            futures: tuple[Future[Any], ...] = (known, ready)
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def _look_ahead(
        self,
        draft: Sequence[int],
        ready: Future[NDArray[np.bool_] | None],
        ahead: Future[list[NDArray[np.bool_] | None]],
    ) -> None:
        try:
            ready.result()  # jobs start in order, so it is done or under way on another thread
            try:
                ahead.set_result(self._steps(draft))
            except GrammarError:
                self._can_go_back = False
                self._matcher = self._constraint.start()
                _accept(self._matcher, self._taken)
                ahead.set_result([])
        except BaseException as error:
            ahead.set_exception(error)

    def _steps(self, draft: Sequence[int]) -> list[NDArray[np.bool_] | None]:
        """An entry for each guess that fits: the mask behind it, or None where a token is forced."""
        matcher = self._matcher or self._constraint.start()
        steps: list[NDArray[np.bool_] | None] = []
        for token in draft:
            # A guess that ends the text is never gone beyond.
            if token in self._end_ids or not matcher.accept((token,)):
                break
            steps.append(None if matcher.forced() or matcher.is_finished() else self._mask(matcher))
            if steps[-1] is None:
                break
        matcher.rollback(len(steps))
        return steps

    def _mask(self, matcher: TokenMatcher) -> NDArray[np.bool_]:
        mask = matcher.allowed()
        if matcher.is_complete():
            mask[self._end_ids] = True
        if not mask.any():
            raise GrammarError("the grammar allows no token here")
        return mask


def _accept(matcher: TokenMatcher, token_ids: Sequence[int]) -> None:
    if matcher.accept(token_ids) != len(token_ids):
        raise GrammarError("the grammar refuses a token that it allowed")


def wait_for_any(futures: Sequence[Future[Any]]) -> None:
    """Block until one of them is done."""
    if futures:
        wait(futures, return_when=FIRST_COMPLETED)


def wait_a_moment(guides: Sequence[Guide]) -> None:
    """Let the executor find what is forced, for at most `PATIENCE` seconds."""
    pending = [guide.pending for guide in guides if guide.pending is not None]
    if pending:
        wait(pending, timeout=PATIENCE)
