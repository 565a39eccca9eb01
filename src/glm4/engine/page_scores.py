"""`PageScores`: log-probabilities of prompt tokens, kept beside a shared page so that scoring can use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from glm4.logprobs import TokenLogprobs

# Tokens after a page whose log-probability is kept. A page that many different ones follow forgets the oldest.
_MOST_NEXT = 8


class PageScores:
    """What the rows of one page say about the tokens after them.

    All but the last row predict a token of the page itself. The last one predicts the first token of the next page,
    which differs between prompts: these are kept by token. An entry takes 8 bytes, and 8 for each of the most likely
    tokens that come with it.

    Args:
        inside: of the page's tokens but the first, with equally many most likely tokens each; of a partly filled page,
            or one whose end is not of the prompt, of fewer.
    """

    __slots__ = ("_inside", "_next", "count")

    def __init__(self, inside: Sequence[TokenLogprobs]) -> None:
        self.count = len(inside)
        self._inside = _pack(inside)
        self._next: dict[int, bytes] = {}

    @property
    def num_top(self) -> int:
        """Most likely tokens at each position inside."""
        return len(self._inside) // self.count // 8 - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return len(self._inside) + sum(map(len, self._next.values()))

    def add_next(self, scored: TokenLogprobs) -> None:
        """Add one of the tokens that follow the page."""
        entry = _pack([scored])
        before = self._next.pop(scored.token_id, b"")
        self._next[scored.token_id] = max(before, entry, key=len)
        if len(self._next) > _MOST_NEXT:
            del self._next[next(iter(self._next))]

    def joined(self, older: PageScores) -> PageScores:
        """The one with more most likely tokens of two for the same page, with all next tokens of the older one."""
        if older.num_top > self.num_top:
            return older
        self._next = {**older._next, **self._next}
        return self

    def cover(self, next_id: int, num_top: int) -> bool:
        """Whether everything up to the token after the page is known, with this many most likely ones."""
        following = self._next.get(next_id)
        return following is not None and min(self.num_top, len(following) // 8 - 1) >= num_top

    def read_inside(self, ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
        """Entries of `ids`: the page's from the second on, at most `count`."""
        return _unpack(self._inside[: len(self._inside) // self.count * len(ids)], ids, num_top)

    def read(self, ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
        """Entries of `ids`: the page's but the first, and the one after it; `cover` must have been True."""
        return self.read_inside(ids[:-1], num_top) + _unpack(self._next[ids[-1]], ids[-1:], num_top)


@lru_cache
def _entry(num_top: int) -> np.dtype[np.void]:
    return np.dtype([("own", "f4"), ("rank", "i4"), ("ids", "i4", (num_top,)), ("top", "f4", (num_top,))])


def _pack(entries: Sequence[TokenLogprobs]) -> bytes:
    num_top = len(entries[0].top)
    rows = [(at.logprob, at.rank or 0, [one for one, _ in at.top], [score for _, score in at.top]) for at in entries]
    return np.array(rows, _entry(num_top)).tobytes()


def _unpack(data: bytes, ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    rows = np.frombuffer(data, _entry(len(data) // len(ids) // 8 - 1))
    tops = zip(rows["ids"][:, :num_top].tolist(), rows["top"][:, :num_top].tolist(), strict=True)
    own = zip(ids, rows["own"].tolist(), rows["rank"].tolist(), tops, strict=True)
    return [TokenLogprobs(token, score, rank, tuple(zip(*top, strict=True))) for token, score, rank, top in own]
