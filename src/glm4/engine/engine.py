"""`Engine`: requests in, tokens out, one forward pass per step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import accumulate, takewhile

import numpy as np
from numpy.typing import NDArray

from glm4.engine.adapters import AdapterTable
from glm4.engine.page_store import PageStore, StoredPrefixes
from glm4.engine.pictures import PictureEncoder, check_pictures
from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.prefix_rows import PrefixRows
from glm4.engine.protocol import EngineStats, GenerationOutput, GenerationRequest, check_request
from glm4.engine.scheduler import ScheduledSequence, Scheduler, SchedulerConfig
from glm4.engine.sequence import Rows, Sequence
from glm4.errors import GrammarError, InvalidRequestError
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.prefix import Adapter
from glm4.model.transformer import Transformer

log = logging.getLogger("glm4.engine")

# A sequence ready for its next token, its draft, and the last layer's outputs after its ids and after each draft token.
_Ready = tuple[Sequence, list[int], NDArray[np.float32]]

# Rows of logits held at once while scoring a prompt: 64 × 151,552 × 4 bytes = 39 MB.
_LOGIT_ROWS = 64


class Engine:
    """Continuous batching over one model and one paged cache. Synchronous and single-threaded.

    Args:
        banned_ids: vocabulary rows that may never be sampled (they have no token).
        max_model_len: prompt + output of one sequence; at most what the cache holds.
        enable_prefix_caching: keep the pages of finished requests and share them with later ones.
        max_adapters, max_adapter_nbytes: limits on the number of loaded adapters and on their total bytes.
        picture_cache_nbytes: of what the vision tower made of pictures, kept for later requests.
        page_store: keeps pages of this cache beyond it; needs prefix caching. The caller closes it.

    Attributes:
        adapters: the adapters that requests may name.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        max_model_len: int,
        scheduler_config: SchedulerConfig | None = None,
        banned_ids: NDArray[np.int64] | None = None,
        enable_prefix_caching: bool = True,
        max_adapters: int = 16,
        max_adapter_nbytes: int = 2 << 30,
        picture_cache_nbytes: int = 256 << 20,
        page_store: PageStore | None = None,
    ) -> None:
        if max_model_len > cache.num_pages * PAGE_SIZE:
            raise ValueError(f"max_model_len {max_model_len} exceeds the cache's {cache.num_pages * PAGE_SIZE} tokens")
        self.model = model
        self.cache = cache
        self.max_model_len = max_model_len
        self.prefix_cache = PrefixCache(cache, enable_prefix_caching)
        self._stored = None if page_store is None else StoredPrefixes(page_store, self.prefix_cache)
        prefixes = PrefixRows(model, cache, self.prefix_cache)
        self.scheduler = Scheduler(scheduler_config or SchedulerConfig(), self.prefix_cache, prefixes, self._stored)
        self._banned_ids = np.empty(0, np.int64) if banned_ids is None else banned_ids
        self._sequences: dict[str, Sequence] = {}
        self._seconds = 0.0  # spent in the model in this step
        self.adapters = AdapterTable[Adapter](max_adapters, max_adapter_nbytes)
        self._encoder = None if model.vision is None else PictureEncoder(model.vision, picture_cache_nbytes)
        self._num_picture_hits = 0
        self._num_drafted = 0
        self._num_accepted = 0

    def add_request(self, request: GenerationRequest) -> None:
        """Add a request to the queue.

        Raises:
            PromptTooLongError: no room for the prompt plus one new token.
            InvalidRequestError: empty prompt, an id outside the vocabulary, a request id in use, an unknown adapter, or
                media that the model cannot take (`check_pictures`).
        """
        vocab_size = self.model.config.vocab_size
        if request.request_id in self._sequences:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        adapter = None if request.adapter is None else self.adapters.get(request.adapter)
        num_virtual = 0 if adapter is None else adapter.num_virtual_tokens
        check_request(request, vocab_size, self.max_model_len, len(self._banned_ids), num_virtual)
        check_pictures(request.prompt, self.model.config.vision)
        sequence = Sequence(request, self._banned_ids, self.max_model_len, num_virtual)
        sequence.adapter = adapter
        if self._encoder is None or not sequence.spans or self._has_pictures(self._encoder, sequence):
            self.scheduler.add(sequence)
        else:
            self._encoder.add(sequence)
        self._sequences[request.request_id] = sequence

    def _has_pictures(self, encoder: PictureEncoder, sequence: Sequence) -> bool:
        """True if a new sequence does not have to wait for the tower."""
        encoder.provide(sequence)
        lacking = len(sequence.lacking_pictures())
        if lacking and self.scheduler.finds_pictures(sequence):
            lacking = 0
        self._num_picture_hits += len({span.digest for span in sequence.spans}) - lacking
        return not lacking

    def abort(self, request_id: str) -> None:
        """Drop a request immediately and free its pages; unknown ids are ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            if self._encoder is not None:
                self._encoder.remove(sequence)
            self.scheduler.remove(sequence)

    def close(self) -> None:
        """Drop all requests. Memory is freed with this object. Idempotent."""
        for request_id in self.request_ids():
            self.abort(request_id)

    def request_ids(self) -> list[str]:
        """Ids of all requests that are waiting or running."""
        return list(self._sequences)

    def has_unfinished_requests(self) -> bool:
        """True while `step` has work to do."""
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        """What the engine is doing. May be called from any thread; the numbers are then only roughly simultaneous."""
        scheduler, encoder, stored = self.scheduler, self._encoder, self._stored
        # Copies, because another thread may add and remove in the meantime.
        running = {s.request.adapter for s in list(scheduler.running) if s.request.adapter is not None}
        queue = [*scheduler.waiting, *(encoder.waiting if encoder is not None else ())]
        waiting = {s.request.adapter for s in queue if s.request.adapter is not None}
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(queue),
            kv_pages_used=self.prefix_cache.num_used_pages,
            kv_pages_total=self.cache.num_pages,
            prompt_score_nbytes=self.prefix_cache.score_nbytes,
            prefix_cache_queries=scheduler.num_looked_up_tokens,
            prefix_cache_hits=scheduler.num_found_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_drafted_tokens=self._num_drafted,
            num_accepted_tokens=self._num_accepted,
            running_adapters=tuple(sorted(running)),
            waiting_adapters=tuple(sorted(waiting - running)),
            pictures_encoded=0 if encoder is None else encoder.num_encoded,
            picture_cache_hits=self._num_picture_hits,
            encoding=None if encoder is None else encoder.progress,
            kv_store_hits=0 if stored is None else stored.num_read_tokens,
            kv_store_pages_written=0 if stored is None else stored.store.num_written_pages,
            kv_store_nbytes=0 if stored is None else stored.store.nbytes,
        )

    def step(self) -> list[GenerationOutput]:
        """Run one forward pass and sample where a sequence is ready for its next token; encode a piece of a picture.

        What goes wrong in a sequence's own part of the step ends it with an error. An exception from here is about the
        bookkeeping that all sequences share.
        """
        self._seconds = 0.0
        self.scheduler.admit()
        if self._stored is not None:
            self._stored.read(self.scheduler.running)
        touched = self._begin_grammars()
        encoder = self._encoder
        encoding = encoder is not None and encoder.has_work(self.scheduler.waiting)
        scheduled = self.scheduler.schedule(encoding)
        touched += [sequence for sequence in self.scheduler.running if sequence.end is not None]
        if encoder is not None:
            touched += self._encode(encoder, encoding)
        if scheduled:
            decoding = all(item.sequence.num_remaining == 1 for item in scheduled)
            ready = self._compute(scheduled)
            touched += [item.sequence for item in scheduled if item.sequence.end is not None]
            for group in _grouped(ready):
                self._sample(group)
            touched += [sequence for sequence, _, _ in ready]
            if decoding:
                self.scheduler.row_cost.record(sum(item.num_rows for item in scheduled), self._seconds)
        return [self._report(sequence) for sequence in touched]

    def _encode(self, encoder: PictureEncoder, encoding: bool) -> list[Sequence]:
        """The vision tower's part of the step; returns the sequences that it ended. Others enter the queue."""
        done = encoder.advance(self.scheduler.encoder_rows) if encoding else []
        for sequence in done:
            if sequence.end is None:
                self.scheduler.add(sequence)
        while self.scheduler.lacking:
            sequence = self.scheduler.lacking.pop(0)
            encoder.provide(sequence)
            (encoder if sequence.lacking_pictures() else self.scheduler).add(sequence)
        return [sequence for sequence in done if sequence.end is not None]

    def _begin_grammars(self) -> list[Sequence]:
        """Append what grammars force at the start, to be computed with the prompt; returns sequences that end there.

        A prompt to be scored is computed first, by itself.
        """
        for sequence in self.scheduler.running:
            if not sequence.wants_prompt_logprobs():
                sequence.attempt(sequence.append_forced)
        ended = [sequence for sequence in self.scheduler.running if sequence.end is not None]
        for sequence in ended:
            self.abort(sequence.request_id)
        return ended

    def _compute(self, scheduled: list[ScheduledSequence]) -> list[_Ready]:
        """One forward pass; returns the sequences whose ids are all computed. Others may have ended."""
        ready: list[_Ready] = []
        for item, rows in self._forward(scheduled):
            item.sequence.attempt(self._take, item, rows, ready)
        return ready

    def _take(self, item: ScheduledSequence, rows: NDArray[np.float32], ready: list[_Ready]) -> None:
        """A sequence's part of the pass: float32 [item.num_rows, hidden_size]."""
        sequence = item.sequence
        if sequence.adapter is not None and not np.isfinite(rows).all():
            # Finite factors can still overflow, and a bad adapter must not end other requests.
            sequence.end = "abort", None
            return
        if sequence.wants_prompt_logprobs():
            self._score_prompt(item, rows[: item.num_tokens])
        sequence.num_computed += item.num_tokens
        if sequence.pool is not None:  # its pages are not kept for reuse
            first = sequence.num_computed - item.num_tokens - sequence.num_virtual
            sequence.pool.add(first, self.model.final_norm(rows))
            if not sequence.num_remaining:
                # An adapter's values can be finite but so large that the norm makes them zero.
                usable = sequence.adapter is None or sequence.pool.has_direction
                sequence.embedding = sequence.pool.result() if usable else None
                sequence.end = "stop" if usable else "abort", None
        elif sequence.num_remaining:
            self._share(sequence)
        else:
            ready.append((sequence, item.draft, rows[item.num_tokens - 1 :]))

    def _forward(self, scheduled: list[ScheduledSequence]) -> list[tuple[ScheduledSequence, NDArray[np.float32]]]:
        """The last layer's outputs for every sequence, from one pass.

        If the pass fails, every sequence gets its own, which gives the same bits; those that fail again end with the
        error. So an adapter that cannot be applied, or a batch too large for the memory that is left, ends only the
        requests at fault.
        """
        try:
            hidden = self._run_model(scheduled)
        except Exception as error:
            if len(scheduled) == 1:
                scheduled[0].sequence.fail(error)
                return []
            log.warning("a pass over %d sequences failed; each gets its own", len(scheduled), exc_info=True)
        else:
            ends = list(accumulate(item.num_rows for item in scheduled))
            return [(item, hidden[end - item.num_rows : end]) for item, end in zip(scheduled, ends, strict=True)]
        return [result for item in scheduled for result in self._forward([item])]

    def _run_model(self, scheduled: list[ScheduledSequence]) -> NDArray[np.float32]:
        ids: list[int] = []
        pictures: list[tuple[int, Rows]] = []
        for item in scheduled:
            pictures += [(len(ids) + row, rows) for row, rows in item.sequence.next_picture_rows(item.num_tokens)]
            first = item.sequence.num_computed
            ids += item.sequence.ids[first : first + item.num_tokens]
            ids += item.draft
        batch = ForwardBatch.build(
            pages=[s.sequence.pages for s in scheduled],
            computed=[s.sequence.num_computed for s in scheduled],
            new=[s.num_rows for s in scheduled],
            adapters=[s.sequence.lora for s in scheduled],
            positions=[s.sequence.next_positions(s.num_rows) for s in scheduled],
        )
        start = time.perf_counter()
        hidden = self.model.forward(np.asarray(ids, np.int32), batch, self.cache, pictures)
        self._seconds += time.perf_counter() - start
        return hidden

    def _sample(self, ready: list[_Ready]) -> None:
        """Sample for every sequence; one by one if their logits cannot be computed together."""
        began = time.perf_counter()
        try:
            logits = self.model.logits(np.concatenate([rows for _, _, rows in ready]))
        except Exception as error:
            if len(ready) == 1:
                ready[0][0].fail(error)
                return
        else:
            self._seconds += time.perf_counter() - began
            start = 0
            for sequence, draft, rows in ready:
                sequence.attempt(self._advance, sequence, draft, logits[start : start + len(rows)])
                start += len(rows)
            return
        for one in ready:
            self._sample([one])

    def _advance(self, sequence: Sequence, draft: list[int], logits: NDArray[np.float32]) -> None:
        """Sample a sequence's next tokens: one, plus one for every accepted draft token.

        Each is drawn from the row computed after the tokens before it, with the sequence's own random stream, so the
        text is the same as with single steps.
        """
        first = len(sequence.ids)
        try:
            sequence.append_forced()  # for the first time, if the prompt had to be scored first
            while sequence.end is None:
                count = len(sequence.ids) - first
                if sequence.ids[first:] != draft[:count]:
                    break
                sequence.append_next(logits[count], self._log_probabilities)
                sequence.append_forced()
        except GrammarError:
            sequence.end = "length", None
        if draft:
            pairs = zip(draft, sequence.ids[first:], strict=False)
            accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            sequence.num_computed += accepted  # their keys and values are already in the cache
            sequence.lookup.record(len(draft), accepted)
            self._num_drafted += len(draft)
            self._num_accepted += accepted
        self._share(sequence)

    def _report(self, sequence: Sequence) -> GenerationOutput:
        try:
            output = sequence.report()
        except Exception as error:
            sequence.fail(error)
            output = sequence.report()
        if sequence.end is not None:
            self.abort(sequence.request_id)
        return output

    def _log_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's own, before penalties and temperature; rows without a token do not appear in any ranking."""
        scores = self.model.kernels.log_softmax(logits)
        scores[:, self._banned_ids] = -np.inf
        return scores

    def _share(self, sequence: Sequence) -> None:
        first = sequence.num_shared_pages
        sequence.num_shared_pages = self.prefix_cache.share(
            sequence.ids,
            sequence.pages,
            sequence.num_computed,
            sequence.num_shared_pages,
            sequence.tree,
            sequence.spans,
        )
        if sequence.keeps_scores():
            shared = sequence.pages[: sequence.num_shared_pages]
            self.prefix_cache.keep_scores(shared, first, sequence.prompt_logprobs)
        if self._stored is not None:
            self._stored.keep(sequence)

    def _score_prompt(self, item: ScheduledSequence, hidden: NDArray[np.float32]) -> None:
        """Record log-probabilities of the prompt ids that the rows of this chunk predict."""
        first, last = item.sequence.rows_to_score(item.num_tokens)
        for start in range(first, last, _LOGIT_ROWS):
            rows = np.ascontiguousarray(hidden[start : min(start + _LOGIT_ROWS, last)])
            item.sequence.append_scores(self._log_probabilities(self.model.logits(rows)))


def _grouped(ready: list[_Ready]) -> Iterator[list[_Ready]]:
    """Split into groups of at most `_LOGIT_ROWS` rows of logits."""
    group: list[_Ready] = []
    num_rows = 0
    for item in ready:
        if group and num_rows + len(item[2]) > _LOGIT_ROWS:
            yield group
            group, num_rows = [], 0
        group.append(item)
        num_rows += len(item[2])
    if group:
        yield group
