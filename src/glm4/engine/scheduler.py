"""`Scheduler`: how many tokens of the next step each sequence gets, and which cache pages.

Continuous batching with chunked prefill. Decoding sequences always advance; prefill shares the rest of the
step's token budget max-min fairly, so a short prompt is not stuck behind a long one. When pages run out, the
youngest sequence gives up its pages and starts over later (its ids are kept, so nothing is generated twice).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

from glm4.engine.page_store import StoredPrefixes
from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.prefix_rows import PrefixRows
from glm4.engine.sequence import Sequence
from glm4.engine.speculation import RowCost
from glm4.model.kv_cache import PAGE_SIZE, pages_for

# Of the vision tower's work in a step, in rows of the text model: about one of GLM-4V's 63 layers. More would save
# nothing, and delay aborts and whoever comes next.
_ENCODER_ROWS = 64


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step.

    Attributes:
        max_num_seqs: sequences that may hold pages at the same time.
        max_num_batched_tokens: rows of one forward pass when only prefill runs.
        max_prefill_beside_decode: prefill rows of a pass that also decodes, the vision tower's share among them; bounds
            how long a stream stalls.
        max_speculative_rows: decode rows of a pass, draft tokens included; 0 disables drafts. Up to about eight rows
            cost little more than one, because reading the weights dominates.
        guess_cost: cost of a draft token, as a fraction of a step; None measures it.
    """

    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    max_prefill_beside_decode: int = 128
    max_speculative_rows: int = 8
    guess_cost: float | None = None


@dataclass(frozen=True)
class ScheduledSequence:
    """`num_tokens` of a sequence's remaining ids run in this step, followed by the draft ids in `draft`.

    Pages for all of them are allocated.
    """

    sequence: Sequence
    num_tokens: int
    draft: list[int] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass that this uses."""
        return self.num_tokens + len(self.draft)


class Scheduler:
    """Admission, fairness, preemption and page bookkeeping.

    Args:
        prefixes: what gives sequences the rows of their adapters.
        stored: where to look for pages that the prefix cache does not have.

    Attributes:
        waiting: the queue.
        running: sequences that hold pages, in order of admission; the last one is preempted first.
        lacking: sequences taken out of the queue because they need rows of pictures that they do not have: pages with
            these were evicted. To be emptied by who can provide the rows.
        encoder_rows: the vision tower's share of the last step planned, in rows of the text model.
    """

    def __init__(
        self, config: SchedulerConfig, cache: PrefixCache, prefixes: PrefixRows, stored: StoredPrefixes | None = None
    ) -> None:
        self.config = config
        self._cache = cache
        self._prefixes = prefixes
        self._stored = stored
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.lacking: list[Sequence] = []
        self.encoder_rows = 0
        self.num_preemptions = 0
        self.num_looked_up_tokens = 0  # in the prefix cache
        self.num_found_tokens = 0
        self.row_cost = RowCost(config.guess_cost)

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the queue; first come, first admitted."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or aborted sequence and free its pages."""
        if sequence.keeps_scores() and not sequence.spans and sequence.pages:
            scored = sequence.prompt_logprobs[: sequence.num_computed]
            self._cache.keep_beginning(sequence.ids, sequence.pages, sequence.num_shared_pages, scored, sequence.tree)
        self._release(sequence)
        for place in (self.running, self.waiting, self.lacking):
            if sequence in place:
                place.remove(sequence)

    def schedule(self, encoding: bool = False) -> list[ScheduledSequence]:
        """Plan the next step; empty when nothing is running or waiting.

        Args:
            encoding: a picture is in the vision tower, which takes part in the split of the budget as a prompt does.
        """
        self.admit()
        planned: list[ScheduledSequence] = []
        # Others failed while they were admitted, or wait for pages of the store.
        running = [s for s in self.running if s.end is None and not s.num_awaited_pages]
        decoding = [s for s in running if s.num_remaining == 1]
        for sequence in decoding:
            self._plan(sequence, 1, planned)
        planned = self._with_drafts(planned)
        budget = self.config.max_num_batched_tokens - sum(item.num_rows for item in planned)
        if planned:
            budget = min(budget, self.config.max_prefill_beside_decode)
        prefilling = [s for s in running if s.num_remaining > 1 and s in self.running]
        wants = [s.num_remaining for s in prefilling]
        shares = fair_shares([*wants, *[budget] * encoding], max(0, budget))
        self.encoder_rows = min(shares[-1], _ENCODER_ROWS) if encoding else 0
        for sequence, share in zip(prefilling, shares, strict=False):
            if share:
                self._plan(sequence, share, planned)
        return planned

    def admit(self) -> None:
        """Admit waiting sequences, as far as limits and pages allow."""
        while len(self.running) < self.config.max_num_seqs and (sequence := self._next()) is not None:
            sequence.attempt(self._hold, sequence)
            if sequence.end is None and self._lacks_rows(sequence):
                self._release(sequence)
                self.waiting.remove(sequence)
                self.lacking.append(sequence)
                continue
            # Wait for room for the whole prompt: admitting earlier would only preempt another sequence.
            # One sequence alone always fits, because max_model_len never exceeds the cache.
            needed = pages_for(len(sequence.ids) + 1) - len(sequence.pages)
            if self.running and needed > self._cache.num_available_pages - _num_promised(self.running):
                self._release(sequence)
                return
            sequence.attempt(self._begin, sequence)
            self.waiting.remove(sequence)  # usually the first
            self.running.append(sequence)

    def finds_pictures(self, sequence: Sequence) -> bool:
        """True if the prefix cache has everything up to the end of a sequence's last picture, now."""
        self._hold(sequence)
        lacks = self._lacks_rows(sequence)
        self._release(sequence)
        return not lacks

    def _lacks_rows(self, sequence: Sequence) -> bool:
        """True if rows of pictures are unknown behind the pages that a sequence holds."""
        return bool(sequence.lacking_pictures(len(sequence.pages) * PAGE_SIZE))

    def _next(self) -> Sequence | None:
        """The first waiting sequence whose group may have another one running."""
        if not self.waiting or self.waiting[0].request.max_running is None:
            return self.waiting[0] if self.waiting else None
        running = Counter(sequence.request.group for sequence in self.running)
        for sequence in self.waiting:
            request = sequence.request
            if request.max_running is None or running[request.group] < request.max_running:
                return sequence
        return None

    def _hold(self, sequence: Sequence) -> None:
        """Hold the pages that the prefix cache has for a sequence."""
        ids = sequence.ids
        if sequence.needs_all_rows():
            ids = ids[: sequence.num_virtual + 1]  # virtual tokens are not computed anyway
        sequence.pages = self._cache.hold(ids, sequence.tree, sequence.spans, sequence.num_top_to_score())

    def _begin(self, sequence: Sequence) -> None:
        """Let a sequence begin after the pages that it holds."""
        sequence.num_shared_pages = len(sequence.pages)
        sequence.num_computed = len(sequence.pages) * PAGE_SIZE
        if sequence.num_computed < sequence.num_virtual:
            self._prefixes.fill(sequence)
        self._use_scores(sequence)
        if not sequence.was_admitted:  # after a preemption it finds its own pages
            sequence.was_admitted = True
            sequence.num_cached = sequence.num_computed - sequence.num_virtual
            self._count_lookup(sequence)
        if self._stored is not None:
            self._stored.begin(sequence)

    def _use_scores(self, sequence: Sequence) -> None:
        """Take log-probabilities from the prefix cache for a prompt that holds pages of it, and the rows they allow."""
        num_top = sequence.num_top_to_score()
        if num_top is None:
            return
        known = self._cache.scores(sequence.ids, sequence.pages, num_top)
        source, more = self._cache.beginning(sequence.ids, sequence.pages, num_top, sequence.tree)
        if more and not sequence.spans:
            sequence.pages += self._cache.allocate(1)  # perhaps the source itself, whose content is still there
            self._cache.copy(source, sequence.pages[-1])
            sequence.num_computed += len(more)
            known += more
        sequence.know_scores(known)

    def _count_lookup(self, sequence: Sequence) -> None:
        if self._cache.enabled and not sequence.needs_all_rows():
            self.num_looked_up_tokens += len(sequence.ids) - sequence.num_virtual
            self.num_found_tokens += sequence.num_cached

    def _with_drafts(self, planned: list[ScheduledSequence]) -> list[ScheduledSequence]:
        """Add drafts for decoding sequences, as far as rows and free pages allow; drafts never cause a preemption."""
        promised = _num_promised(s for s in self.running if s.num_remaining > 1)
        rows_left = self.config.max_speculative_rows - len(planned)
        cost = self.row_cost.share(len(planned))
        result: list[ScheduledSequence] = []
        for item in planned:
            sequence, draft = item.sequence, list[int]()
            # The last new token does not need a successor, so drafts stop before it.
            room = sequence.max_new_tokens - sequence.num_new_tokens - 1
            if rows_left > 0 and room > 0:
                try:
                    draft = sequence.lookup.propose(sequence.ids, min(rows_left, room), cost)
                except Exception as error:
                    sequence.fail(error)
                    continue
            needed = pages_for(len(sequence.ids) + len(draft)) - len(sequence.pages)
            if needed > max(0, self._cache.num_available_pages - promised):
                draft = []
            else:
                sequence.pages += self._cache.allocate(max(0, needed))
            rows_left -= len(draft)
            result.append(ScheduledSequence(sequence, item.num_tokens, draft))
        return result

    def _plan(self, sequence: Sequence, num_tokens: int, planned: list[ScheduledSequence]) -> None:
        """Allocate pages for `num_tokens` more ids and plan them; may preempt younger sequences or `sequence`."""
        if sequence not in self.running:
            return  # just preempted by an older one
        needed = pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)
        while needed > self._cache.num_available_pages:
            victim = self.running[-1]
            self._preempt(victim)
            planned[:] = [p for p in planned if p.sequence is not victim]
            if victim is sequence:
                return
        sequence.pages += self._cache.allocate(max(0, needed))
        planned.append(ScheduledSequence(sequence, num_tokens))

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_computed = sequence.num_awaited_pages = 0
        sequence.was_preempted = True
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._cache.release(sequence.pages)
        sequence.pages = []
        sequence.num_shared_pages = 0


def _num_promised(sequences: Iterable[Sequence]) -> int:
    """Pages these will need for their ids plus one more. Drafts may already have given them more than that."""
    return sum(max(0, pages_for(len(s.ids) + 1) - len(s.pages)) for s in sequences)


def fair_shares(wants: AbstractSequence[int], budget: int) -> list[int]:
    """Max-min fair split: no share exceeds its want, and what small wants leave over goes to the large ones."""
    shares = [0] * len(wants)
    hungry = [index for index, want in enumerate(wants) if want]
    while hungry and budget >= len(hungry):
        each = budget // len(hungry)
        for index in hungry:
            given = min(each, wants[index] - shares[index])
            shares[index] += given
            budget -= given
        hungry = [index for index in hungry if shares[index] < wants[index]]
    for index in hungry[:budget]:
        shares[index] += 1
    return shares
