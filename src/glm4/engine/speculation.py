"""Prompt-lookup speculation: draft that what followed these tokens before will follow them again.

Several draft tokens are verified in the same forward pass that computes the next one. Reading the weights dominates a
pass of few rows, so an accepted token costs a fraction of a step. The engine samples every position from the model's
own distribution with the sequence's own random stream and continues only while the draft matches: the text is exactly
the same as without speculation, greedy or sampled.

Copy-heavy text (editing a file, quoting a document, JSON) repeats itself; free-form chat does not. The longest match is
used, and each sequence learns how often drafts after a match of a given length are accepted; it drafts as far as that
outweighs the cost of a row on this machine (`RowCost`), and retries occasionally when it does not.

Image placeholders say nothing about text: no match contains one, and drafts are never taken from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from glm4.prompt import MediaSpan

# Matches are found by their last 2, 3 or 4 ids; those of 4 are extended back to find the longest of the latest few. Up
# to 8 ids: beyond that the latest occurrence is the better one (records with counters, for example).
_SIZES = (2, 3, 4)
_CANDIDATES = 16
_LONGEST = 8
MAX_DRAFT = 7
# Match lengths at which drafts are counted separately, and the initial acceptance rate assumed for each.
_LEVELS = (2, 3, 4, 6)
_EXPECTED = (0.25, 0.35, 0.5, 0.8)
# Weight of the latest verification in the running acceptance rate.
_MEMORY = 0.15
_RETRY_AFTER = 48
_ID_BITS = 24
_MASKS = tuple((1 << size * _ID_BITS) - 1 for size in _SIZES)
# Only the end of a longer prompt is searched: an entry takes about 300 bytes.
_MOST_INDEXED = 1 << 17
# A row's share of a step before it is measured, and the lowest share accepted: drafting takes time in Python too.
_USUAL_COST = 0.25
_LEAST_COST = 0.05
_KEPT = 0.98  # decay of the weight of earlier steps, per step
_FEW_STEPS = 6
_OUTLIER = 3.0
_MOST_OUTLIERS = 12
_LEAST_SPREAD = 0.2


class PromptLookup:
    """Drafts for one sequence, taken from its own prompt and output.

    Args:
        spans: which rows of the prompt stand for media.

    Attributes:
        num_drafted: ids drafted so far.
        num_accepted: those of them that were accepted.
    """

    def __init__(self, spans: Sequence[MediaSpan] = ()) -> None:
        self._spans = spans
        self._marked: list[int] = []
        self.num_drafted = 0
        self.num_accepted = 0
        self._indexed = 0
        # Per size: the last ids as one number → the position after their latest occurrence with a successor.
        self._after: dict[int, dict[int, int]] = {size: {} for size in _SIZES}
        # Position → the previous position after the same four ids; 0 for none.
        self._earlier: list[int] = [0]
        self._hit_rates = list(_EXPECTED)
        self._silent = [0] * len(_LEVELS)
        self._match = 0  # length of the match for the last proposal

    def propose(self, ids: Sequence[int], limit: int, cost: float) -> list[int]:
        """Up to `limit` ids that may follow `ids`; empty if there is no match or a draft does not pay off.

        Args:
            ids: all ids so far; each call's begin with those of the previous call.
            limit: the maximum number of ids; never more than `MAX_DRAFT` are returned.
            cost: cost of verifying one id, as a fraction of a step.
        """
        if self._spans:
            ids = self._mark(ids)
        self._index(ids)
        start, self._match = self._longest_match(ids)
        if not start:
            return []
        text = min((span.start - start for span in self._spans if span.start >= start), default=limit)
        length = self._length(min(limit, MAX_DRAFT, text), cost)
        return list(ids[start : start + length])

    def _mark(self, ids: Sequence[int]) -> list[int]:
        """`ids` with a unique number that is not a token id for each media row, so it does not match any other row."""
        known = len(self._marked)
        self._marked += ids[known:]
        for span in self._spans:
            for row in range(max(span.start, known), min(span.end, len(ids))):
                self._marked[row] = (1 << _ID_BITS) - 1 - row
        return self._marked

    def record(self, drafted: int, accepted: int) -> None:
        """Record how many ids of the last proposal, truncated to `drafted` ids, were accepted."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        # Only verified draft tokens count: what follows a rejected one was never tested.
        for index in range(min(drafted, accepted + 1)):
            level = _level(self._match + index)
            hit = 1.0 if index < accepted else 0.0
            self._hit_rates[level] += _MEMORY * (hit - self._hit_rates[level])

    def _length(self, limit: int, cost: float) -> int:
        """How many tokens to draft: as long as the chance that all are accepted is worth the cost."""
        chance, length = 1.0, 0
        while length < limit:
            # An accepted token makes the match for the next one longer.
            chance *= self._hit_rates[_level(self._match + length)]
            if chance < cost:
                break
            length += 1
        level = _level(self._match)
        if length:
            self._silent[level] = 0
            return length
        self._silent[level] += 1
        if self._silent[level] < _RETRY_AFTER:
            return 0
        self._silent[level] = 0
        return min(limit, 1)

    def _longest_match(self, ids: Sequence[int]) -> tuple[int, int]:
        """(position after the longest earlier occurrence of the last ids, its length); (0, 0) if there is none."""
        for size in reversed(_SIZES):
            start = self._after[size].get(_packed(ids[len(ids) - size :])) if len(ids) > size else None
            if start is None:
                continue
            if size < _SIZES[-1]:
                return start, size
            best, length = start, size
            for _ in range(_CANDIDATES):
                found = _common_ending(ids, start)
                if found > length:
                    best, length = start, found
                start = self._earlier[start]
                if not start or length == _LONGEST:
                    break
            return best, length
        return 0, 0

    def _index(self, ids: Sequence[int]) -> None:
        """Add the contexts that gained a successor since the last call."""
        self._earlier += [0] * (len(ids) - len(self._earlier))
        first = max(self._indexed, 1, len(ids) - _MOST_INDEXED)
        key = _packed(ids[max(0, first - _SIZES[-1]) : first - 1])
        for end in range(first, len(ids)):
            key = (key << _ID_BITS | ids[end - 1]) & _MASKS[-1]
            self._earlier[end] = self._after[_SIZES[-1]].get(key, 0) if end >= _SIZES[-1] else 0
            for size, mask in zip(_SIZES, _MASKS, strict=True):
                if end >= size:
                    self._after[size][key & mask] = end
        self._indexed = len(ids)


class RowCost:
    """The cost of one more row, learned from the duration of steps without prefill.

    A line through (rows, seconds), where older steps count less and less. It determines how long drafts are, and so
    how many steps a text takes, but never the text itself.

    Args:
        fixed: a fraction of a step to use instead of any measurement.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self._fixed = fixed
        # Sums over steps: 1, rows, rows², seconds, rows × seconds.
        self._sums = [0.0] * 5
        self._outliers = 0  # in a row
        self._slope: float | None = None  # seconds per row

    def record(self, rows: int, seconds: float) -> None:
        """Record that a step of `rows` rows took `seconds`."""
        count, total = self._sums[0], self._sums[3]
        if count > _FEW_STEPS and seconds * count > _OUTLIER * total:
            self._outliers += 1
            if self._outliers < _MOST_OUTLIERS:
                return  # the machine was busy with something else
            self._sums = [0.0] * 5  # it was not: steps take this long now
        self._outliers = 0
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [_KEPT * old + value for old, value in zip(self._sums, new, strict=True)]
        count, row_sum, square_sum, total, product_sum = self._sums
        spread = square_sum / count - (row_sum / count) ** 2
        # While all steps have about the same number of rows there is no measurable slope; the last one is kept.
        if count > _FEW_STEPS and spread > _LEAST_SPREAD:
            self._slope = (product_sum / count - row_sum / count * total / count) / spread

    def share(self, num_sequences: int) -> float:
        """The acceptance chance above which a draft token pays off, with `num_sequences` decoding sequences.

        An accepted token saves one of the tokens that a step of that many rows yields.
        """
        if self._fixed is not None:
            return self._fixed
        if self._slope is None:
            return _USUAL_COST
        count, row_sum, _, total, _ = self._sums
        step = total / count + self._slope * (num_sequences - row_sum / count)
        if step <= 0:
            return _USUAL_COST
        return min(1.0, max(_LEAST_COST, self._slope * num_sequences / step))


def _packed(ids: Sequence[int]) -> int:
    """A few ids as one number, which takes less memory than a tuple."""
    number = 0
    for token in ids:
        number = number << _ID_BITS | token
    return number


def _common_ending(ids: Sequence[int], end: int) -> int:
    """Number of ids before position `end` that equal those at the end of `ids`, at most `_LONGEST`."""
    limit = min(end, _LONGEST)
    for count in range(limit):
        if ids[end - 1 - count] != ids[-1 - count]:
            return count
    return limit


def _level(match: int) -> int:
    """The class of match lengths to which `match` (at least 2) belongs."""
    level = len(_LEVELS) - 1
    while level and match < _LEVELS[level]:
        level -= 1
    return level
