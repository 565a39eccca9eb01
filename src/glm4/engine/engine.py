"""`Engine`: requests in, tokens out, one forward pass a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from glm4.engine.adapters import AdapterTable
from glm4.engine.grammar import wait_a_moment, wait_for_any
from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.protocol import EngineStats, GenerationOutput, GenerationRequest
from glm4.engine.sampling import token_logprobs
from glm4.engine.scheduler import ScheduledSequence, Scheduler, SchedulerConfig
from glm4.engine.sequence import Sequence
from glm4.errors import GrammarError, InvalidRequestError, PromptTooLongError
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.transformer import Transformer

# A sequence that is ready for its next token, its guesses, and the last layer's outputs behind its ids and each guess.
_Ready = tuple[Sequence, list[int], NDArray[np.float32]]

# Rows of logits held at once while scoring a prompt: 64 × 151,552 × 4 bytes = 39 MB.
_LOGIT_ROWS = 64
# Grammars are followed while the model computes; two threads keep a slow one from holding up the others.
_GRAMMAR_THREADS = 2


class Engine:
    """Continuous batching over one model and one paged cache. Synchronous and single-threaded.

    Args:
        banned_ids: vocabulary rows that may never be sampled (they have no token).
        max_model_len: prompt + output of one sequence; at most what the cache holds.
        enable_prefix_caching: keep the pages of finished requests and share them with later ones.
        max_adapters, max_adapter_nbytes: LoRA adapters that may be loaded, and what they may take in all.

    Attributes:
        adapters: the LoRA adapters that requests may name.
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
    ) -> None:
        if max_model_len > cache.num_pages * PAGE_SIZE:
            raise ValueError(f"max_model_len {max_model_len} exceeds the cache's {cache.num_pages * PAGE_SIZE} tokens")
        self.model = model
        self.cache = cache
        self.max_model_len = max_model_len
        self.prefix_cache = PrefixCache(cache, enable_prefix_caching)
        self.scheduler = Scheduler(scheduler_config or SchedulerConfig(), self.prefix_cache)
        self._banned_ids = np.empty(0, np.int64) if banned_ids is None else banned_ids
        self._sequences: dict[str, Sequence] = {}
        self._seconds = 0.0  # in the model, in this step
        self.adapters = AdapterTable(max_adapters, max_adapter_nbytes)
        self._num_drafted = 0
        self._num_accepted = 0
        self._executor: ThreadPoolExecutor | None = None  # follows grammars, made for the first of them

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLongError: no room for the prompt and one new token.
            InvalidRequestError: empty prompt, an id outside the vocabulary, a request id in use, or no such adapter.
        """
        vocab_size, length = self.model.config.vocab_size, len(request.prompt)
        if request.request_id in self._sequences:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if not length:
            raise InvalidRequestError("the prompt is empty: there is nothing to continue", param="prompt")
        if length + (request.pooling is None) > self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {length} tokens; the context holds {self.max_model_len}, the answer included",
                param="prompt",
            )
        ids = np.asarray(request.prompt_ids)
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise InvalidRequestError(f"prompt ids must be between 0 and {vocab_size - 1}", param="prompt")
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(request.params, name) or ():
                if not 0 <= token < vocab_size:
                    raise InvalidRequestError(f"{name} names token {token}, outside the vocabulary", param=name)
        ends = request.stop_ids | set(request.params.stop_token_ids)
        if request.params.min_tokens and len(ends) + len(self._banned_ids) >= vocab_size:
            raise InvalidRequestError("stop_token_ids leaves no token for min_tokens", param="stop_token_ids")
        if request.pooling is not None:
            for name, value in (("prompt_logprobs", request.params.prompt_logprobs), ("grammar", request.constraint)):
                if value is not None:
                    raise InvalidRequestError(f"an embedding has no {name}", param=name)
        adapter = None if request.adapter is None else self.adapters.get(request.adapter)
        if request.constraint is not None and self._executor is None:
            self._executor = ThreadPoolExecutor(_GRAMMAR_THREADS, thread_name_prefix="glm4-grammar")
        sequence = Sequence(request, self._banned_ids, self.max_model_len, self._executor)
        sequence.adapter = adapter
        self._sequences[request.request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request at once and free its pages; unknown ids are ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.remove(sequence)

    def close(self) -> None:
        """Drop all requests and end the threads that follow grammars. Idempotent."""
        for request_id in self.request_ids():
            self.abort(request_id)
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def request_ids(self) -> list[str]:
        """Ids of all requests that are waiting or running."""
        return list(self._sequences)

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do."""
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        """What the engine is doing. May be called from any thread: the numbers are then of about the same moment."""
        scheduler = self.scheduler
        # Copies, because another thread may add and remove meanwhile.
        running = {s.request.adapter for s in list(scheduler.running) if s.request.adapter is not None}
        waiting = {s.request.adapter for s in list(scheduler.waiting) if s.request.adapter is not None}
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_pages_used=self.prefix_cache.num_used_pages,
            kv_pages_total=self.cache.num_pages,
            prefix_cache_queries=scheduler.num_looked_up_tokens,
            prefix_cache_hits=scheduler.num_found_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_drafted_tokens=self._num_drafted,
            num_accepted_tokens=self._num_accepted,
            running_adapters=tuple(sorted(running)),
            waiting_adapters=tuple(sorted(waiting - running)),
        )

    def step(self) -> list[GenerationOutput]:
        """Run one forward pass and sample where a sequence is ready for its next token."""
        self._seconds = 0.0
        self.scheduler.admit()
        touched = self._settle_before()
        scheduled = self.scheduler.schedule()
        decoding = all(item.sequence.num_remaining == 1 for item in scheduled)
        ready = self._take_held(wait=not scheduled and not touched)
        if scheduled:
            computed, ended = self._compute(scheduled)
            ready += computed
            touched += ended
        ready = [
            (sequence, draft, rows) for sequence, draft, rows in ready if self._is_sampled_now(sequence, draft, rows)
        ]
        for group in _grouped(ready):
            self._sample(group)
        touched += [sequence for sequence, _, _ in ready]
        self._settle_after(touched)
        if scheduled and decoding:
            self.scheduler.row_cost.record(sum(item.num_rows for item in scheduled), self._seconds)
        return [self._report(sequence) for sequence in touched]

    def _compute(self, scheduled: list[ScheduledSequence]) -> tuple[list[_Ready], list[Sequence]]:
        """One forward pass; returns the sequences that have come to the end of their ids, and those that end here."""
        for item in scheduled:
            if item.draft and item.sequence.guide is not None:
                item.sequence.guide.look_ahead(item.draft)
        hidden = self._forward(scheduled)
        ready: list[_Ready] = []
        ended: list[Sequence] = []
        start = 0
        for item in scheduled:
            sequence, rows = item.sequence, hidden[start : start + item.num_rows]
            start += item.num_rows
            if sequence.adapter is not None and not np.isfinite(rows).all():
                # Finite factors can still overflow, and a bad adapter must end nobody else's requests.
                sequence.end = "abort", None
                ended.append(sequence)
                continue
            if sequence.wants_prompt_logprobs():
                self._score_prompt(item, rows[: item.num_tokens])
            sequence.num_computed += item.num_tokens
            if sequence.pool is not None:  # its pages are not kept for reuse
                sequence.pool.add(sequence.num_computed - item.num_tokens, self.model.final_norm(rows))
                if not sequence.num_remaining:
                    # Finite numbers of an adapter can be so large that the norm makes them zero.
                    usable = sequence.adapter is None or sequence.pool.has_direction
                    sequence.end = "stop" if usable else "abort", None
                    ended.append(sequence)
            elif sequence.num_remaining:
                self._share(sequence)
            else:
                ready.append((sequence, item.draft, rows[item.num_tokens - 1 :]))
        return ready, ended

    # Sequences that follow a grammar: what it forces is appended without sampling, and nobody waits for its masks.

    def _settle_before(self) -> list[Sequence]:
        """Append what grammars force to running sequences, to be computed in this step; returns those that end.

        Where nothing else is running, this waits until there is something to do.
        """
        running = self.scheduler.running
        guided = [s for s in running if s.guide is not None and not s.wants_prompt_logprobs()]
        late = {s: s.guide.pending for s in guided if s.guide is not None and s.guide.pending is not None}
        held = {s: s.guide.waited_for for s in running if s.guide is not None and s.held_rows is not None}
        if late and all(s in late or held.get(s) for s in running):
            wait_for_any([*late.values(), *(future for futures in held.values() for future in futures)])
        for sequence in guided:
            sequence.settle()
        ended = [s for s in guided if s.end is not None]
        for sequence in ended:
            self.abort(sequence.request_id)
        return ended

    def _settle_after(self, touched: list[Sequence]) -> None:
        """The same at the end of a step for the sequences that have new tokens, so that callers see it in this step."""
        running = [s for s in touched if s.end is None]
        wait_a_moment([s.guide for s in running if s.guide is not None])
        for sequence in running:
            sequence.settle()

    def _take_held(self, *, wait: bool) -> list[_Ready]:
        """Rows kept from earlier steps, of the sequences whose grammars have said by now what may follow."""
        held = [s for s in self.scheduler.running if s.held_rows is not None and s.guide is not None]
        if wait and held and all(s.guide.waited_for for s in held if s.guide):
            wait_for_any([future for s in held if s.guide for future in s.guide.waited_for])
        ready: list[_Ready] = []
        for sequence in held:
            if sequence.guide is not None and sequence.held_rows is not None and not sequence.guide.waited_for:
                ready.append((sequence, sequence.held_draft, sequence.held_rows))
                sequence.held_rows = None
        return ready

    def _is_sampled_now(self, sequence: Sequence, draft: list[int], rows: NDArray[np.float32]) -> bool:
        """Whether the next token is to be sampled. If its grammar is not ready, the rows are kept for a later step."""
        if sequence.guide is None:
            return True
        if sequence.guide.waited_for:
            sequence.held_rows, sequence.held_draft = rows.copy(), draft
            return False
        return True

    def _forward(self, scheduled: list[ScheduledSequence]) -> NDArray[np.float32]:
        ids: list[int] = []
        for item in scheduled:
            first = item.sequence.num_computed
            ids += item.sequence.ids[first : first + item.num_tokens]
            ids += item.draft
        batch = ForwardBatch.build(
            pages=[s.sequence.pages for s in scheduled],
            computed=[s.sequence.num_computed for s in scheduled],
            new=[s.num_rows for s in scheduled],
            adapters=[s.sequence.adapter for s in scheduled],
            positions=[s.sequence.next_positions(s.num_rows) for s in scheduled],
        )
        start = time.perf_counter()
        hidden = self.model.forward(np.asarray(ids, np.int32), batch, self.cache)
        self._seconds += time.perf_counter() - start
        return hidden

    def _sample(self, ready: list[_Ready]) -> None:
        began = time.perf_counter()
        logits = self.model.logits(np.concatenate([rows for _, _, rows in ready]))
        self._seconds += time.perf_counter() - began
        start = 0
        for sequence, draft, rows in ready:
            self._advance(sequence, draft, logits[start : start + len(rows)])
            start += len(rows)

    def _advance(self, sequence: Sequence, draft: list[int], logits: NDArray[np.float32]) -> None:
        """Sample a sequence's next tokens: one, and one more for every guess that came true.

        Each is drawn from the row computed after the tokens before it, with the sequence's own random stream, so the
        text is the one that single steps would have given.
        """
        guide = sequence.guide
        if sequence.settle():
            return  # a grammar that was late has forced the next token, so there is nothing to sample
        was_forced = guide is not None and bool(guide.queue)
        sampled: list[int] = []
        try:
            for index, row in enumerate(logits):
                if index and sampled[-1] != draft[index - 1]:
                    break
                if guide is not None and index and guide.allowed(index) is None:
                    draft = draft[:index]  # what is forced now comes without sampling, and behind it the guess is moot
                    break
                # A guessed token's keys and values are in the cache already.
                sequence.num_computed += min(index, 1)
                sampled.append(self._next_token(sequence, index, row))
                if sequence.end is not None:
                    break
        except GrammarError:
            sequence.end = "length", None
        if draft:
            accepted = sum(1 for pair in zip(draft, sampled, strict=False) if pair[0] == pair[1])
            sequence.lookup.record(len(draft), accepted)
            self._num_drafted += len(draft)
            self._num_accepted += accepted
        if guide is not None and sequence.end is None and not was_forced:
            guide.advance(sampled)
        self._share(sequence)

    def _next_token(self, sequence: Sequence, index: int, logits: NDArray[np.float32]) -> int:
        """The token that follows the row computed after `index` guesses: forced, or sampled."""
        guide, wanted = sequence.guide, sequence.request.params.logprobs
        scores = None if wanted is None else self._log_probabilities(logits[None, :])[0]
        if guide is not None and guide.queue:
            token = guide.queue.popleft()
            sequence.sampler.remember(token)
        else:
            allowed = None if guide is None else guide.allowed(index)
            token = sequence.sampler.sample(logits, sequence.num_new_tokens, allowed)
        if scores is not None:
            sequence.unreported_logprobs.append(token_logprobs(scores, token, wanted or 0))
        sequence.append(token)
        return token

    def _report(self, sequence: Sequence) -> GenerationOutput:
        if sequence.end is not None:
            self.abort(sequence.request_id)
        return sequence.report()

    def _log_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the model itself, before penalties and temperature; rows without a token do not appear in any ranking."""
        scores = self.model.kernels.log_softmax(logits)
        scores[:, self._banned_ids] = -np.inf
        return scores

    def _share(self, sequence: Sequence) -> None:
        sequence.num_shared_pages = self.prefix_cache.share(
            sequence.ids,
            sequence.pages,
            sequence.num_computed,
            sequence.num_shared_pages,
            sequence.tree,
            sequence.spans,
        )

    def _score_prompt(self, item: ScheduledSequence, hidden: NDArray[np.float32]) -> None:
        """Log-probabilities of the prompt ids that the rows of this chunk predict."""
        sequence = item.sequence
        # Row r predicts id num_computed + r + 1; after a preemption some are known already.
        first = len(sequence.prompt_logprobs) - 1 - sequence.num_computed
        last = min(item.num_tokens, sequence.num_prompt - 1 - sequence.num_computed)
        for start in range(max(0, first), last, _LOGIT_ROWS):
            rows = np.ascontiguousarray(hidden[start : min(start + _LOGIT_ROWS, last)])
            for offset, logprobs in enumerate(self._log_probabilities(self.model.logits(rows))):
                token = sequence.ids[sequence.num_computed + start + offset + 1]
                wanted = sequence.request.params.prompt_logprobs or 0
                sequence.prompt_logprobs.append(token_logprobs(logprobs, token, wanted))


def _grouped(ready: list[_Ready]) -> Iterator[list[_Ready]]:
    """Cut into groups of at most `_LOGIT_ROWS` rows of logits."""
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
