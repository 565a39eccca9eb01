"""`Grammar`: a compiled grammar of the library as the engine follows it."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glm4.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher

TOO_COMPLEX = "it is too complex"
NOTHING_FITS = "no text can satisfy this"
_MAX_REASON = 300  # maximum characters of the library's explanation in an error


def reason(error: str) -> str:
    """The library's explanation, in a form that helps the author of the grammar."""
    if "panic" in error or "backtrace" in error:
        return f"{TOO_COMPLEX}; the grammar library failed on it"
    unknown = error.removeprefix("Unimplemented keys: ")
    if unknown != error:
        try:
            keys = ", ".join(map(repr, json.loads(unknown.splitlines()[0])))
        except ValueError:
            keys = unknown
        return f"JSON schema keywords that cannot be enforced: {keys}"
    if error.startswith("NoExtension"):
        return NOTHING_FITS
    return error.replace("<non-verbose/>", "").strip()[:_MAX_REASON]


@contextlib.contextmanager
def panics_as(error: Exception) -> Iterator[None]:
    """Turn a library panic, which is not an `Exception`, into `error`: it affects only one request."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error from None


class Grammar:
    """A `TokenConstraint`: a matcher kept in its initial state and copied for each sequence.

    Args:
        text: its description, and
        end_id: the id that ends a text and that it does not name: from these, other processes compile it.
        matcher: in its initial state.
        usable: ids allowed in a text: bool [vocab_size].
        forced: the tokens that the grammar forces at the start, all usable: they may be thousands, and are not looked
            for again in the engine's step.
        after: a matcher that has consumed them.
        own_ends: see `TokenConstraint`.
    """

    def __init__(
        self,
        text: str,
        end_id: int,
        matcher: LLMatcher,
        usable: NDArray[np.bool_],
        forced: list[int],
        after: LLMatcher,
        own_ends: frozenset[int] = frozenset(),
    ) -> None:
        self.text, self.end_id, self.own_ends = text, end_id, own_ends
        self._matcher, self._usable, self._forced, self._after = matcher, usable, forced, after
        self._lock = threading.Lock()

    def start(self) -> _Matcher:
        """See `TokenConstraint`."""
        with self._lock:
            return _Matcher(self._matcher.deep_copy(), self._usable, self._forced, self._continued)

    def _continued(self) -> LLMatcher:
        with self._lock:
            return self._after.deep_copy()


class _Matcher:
    """See `TokenMatcher`."""

    def __init__(
        self, matcher: LLMatcher, usable: NDArray[np.bool_], forced: list[int], after: Callable[[], LLMatcher]
    ) -> None:
        self._matcher = matcher
        self._usable = usable
        self._forced, self._after = forced, after  # known as long as nothing is accepted

    def accept(self, token_ids: Sequence[int]) -> int:
        """See `TokenMatcher`."""
        tokens = list(token_ids)
        forced, self._forced = self._forced, []
        if forced and tokens == forced:
            self._matcher = self._after()
            return len(tokens)
        with self._checked():
            return self._matcher.try_consume_tokens(tokens)

    def forced(self) -> list[int]:
        """See `TokenMatcher`."""
        if self._forced:
            return list(self._forced)
        with self._checked():
            tokens = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        return list(itertools.takewhile(self._usable.__getitem__, tokens))

    def allowed(self) -> NDArray[np.bool_]:
        """See `TokenMatcher`."""
        with self._checked():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: len(self._usable)].view(np.bool_)
        mask &= self._usable
        return mask

    def is_complete(self) -> bool:
        """See `TokenMatcher`."""
        with self._checked():
            return self._matcher.is_accepting()

    def is_finished(self) -> bool:
        """See `TokenMatcher`."""
        with self._checked():
            return self._matcher.is_stopped()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        with panics_as(GrammarError(TOO_COMPLEX)):
            yield
        if self._matcher.is_error():
            raise GrammarError(reason(self._matcher.get_error()))
