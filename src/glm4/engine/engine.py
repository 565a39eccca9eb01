"""`Engine`: requests in, tokens out, one forward pass a step."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from glm4.engine.adapters import AdapterTable
from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.sampling import token_logprobs
from glm4.engine.scheduler import ScheduledSequence, Scheduler, SchedulerConfig
from glm4.engine.sequence import Sequence
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.generation import EngineStats, GenerationOutput, GenerationRequest, TokenLogprobs
from glm4.model.kv_cache import PAGE_SIZE, ForwardBatch, KVCache
from glm4.model.transformer import Transformer

# Rows of logits held at once while scoring a prompt: 64 × 151,552 × 4 bytes = 39 MB.
_LOGIT_ROWS = 64


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

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLongError: no room for the prompt and one new token.
            InvalidRequestError: empty prompt, an id outside the vocabulary, a request id in use, or no such adapter.
        """
        vocab_size, length = self.model.config.vocab_size, len(request.prompt_ids)
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
        if request.pooling is not None and request.params.prompt_logprobs is not None:
            raise InvalidRequestError("an embedding has no prompt_logprobs", param="prompt_logprobs")
        adapter = None if request.adapter is None else self.adapters.get(request.adapter)
        sequence = Sequence(request, self._banned_ids, self.max_model_len)
        sequence.adapter = adapter
        self._sequences[request.request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request at once and free its pages; unknown ids are ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self.scheduler.remove(sequence)

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
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return []
        self._seconds = 0.0
        decoding = all(item.sequence.num_remaining == 1 for item in scheduled)
        hidden = self._forward(scheduled)
        ready: list[tuple[ScheduledSequence, int]] = []
        outputs: list[GenerationOutput] = []
        start = 0
        for item in scheduled:
            sequence = item.sequence
            if sequence.wants_prompt_logprobs():
                self._score_prompt(item, hidden[start : start + item.num_tokens])
            if sequence.adapter is not None and not np.isfinite(hidden[start : start + item.num_rows]).all():
                # Finite factors can still overflow, and a bad adapter must end nobody else's requests.
                self.abort(sequence.request_id)
                outputs.append(GenerationOutput(sequence.request_id, finish_reason="abort"))
                start += item.num_rows
                continue
            if sequence.pool is not None:
                outputs += self._pool(item, hidden[start : start + item.num_tokens])
                start += item.num_rows
                continue
            sequence.num_computed += item.num_tokens
            if not sequence.num_remaining:
                ready.append((item, start + item.num_tokens - 1))
            else:
                self._share(sequence)
            start += item.num_rows
        outputs += [output for group in _grouped(ready) for output in self._sample(group, hidden)]
        if decoding:
            self.scheduler.row_cost.record(sum(item.num_rows for item in scheduled), self._seconds)
        return outputs

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
        )
        start = time.perf_counter()
        hidden = self.model.forward(np.asarray(ids, np.int32), batch, self.cache)
        self._seconds += time.perf_counter() - start
        return hidden

    def _sample(
        self, ready: list[tuple[ScheduledSequence, int]], hidden: NDArray[np.float32]
    ) -> list[GenerationOutput]:
        rows = [row + offset for item, row in ready for offset in range(1 + len(item.draft))]
        began = time.perf_counter()
        logits = self.model.logits(np.ascontiguousarray(hidden[rows]))
        self._seconds += time.perf_counter() - began
        outputs, start = [], 0
        for item, _ in ready:
            stop = start + 1 + len(item.draft)
            outputs.append(self._advance(item, logits[start:stop]))
            start = stop
        return outputs

    def _advance(self, item: ScheduledSequence, logits: NDArray[np.float32]) -> GenerationOutput:
        """Sample a sequence's next tokens: one, and one more for every guess that came true.

        Each is drawn from the row computed after the tokens before it, with the sequence's own random stream, so the
        text is the one that single steps would have given.
        """
        sequence, wanted = item.sequence, item.sequence.request.params.logprobs
        first_answer = not sequence.num_new_tokens
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        reason: str | None = None
        stop_token: int | None = None
        for index, row in enumerate(logits):
            scores = None if wanted is None else self._log_probabilities(row[None, :])[0]
            token = sequence.sampler.sample(row, sequence.num_new_tokens)
            if scores is not None:
                logprobs.append(token_logprobs(scores, token, wanted or 0))
            sequence.ids.append(token)
            tokens.append(token)
            reason, stop_token = sequence.finish_reason()
            if reason is not None or index == len(item.draft) or token != item.draft[index]:
                break
            sequence.num_computed += 1  # the guessed token's keys and values are in the cache already
        if item.draft:
            sequence.lookup.record(len(item.draft), len(tokens) - 1)
            self._num_drafted += len(item.draft)
            self._num_accepted += len(tokens) - 1
        self._share(sequence)
        if reason is not None:
            self.abort(sequence.request_id)
        scored = first_answer and sequence.request.params.prompt_logprobs is not None
        return GenerationOutput(
            request_id=sequence.request_id,
            token_ids=tuple(tokens),
            finish_reason=reason,
            stop_token_id=stop_token,
            logprobs=tuple(logprobs),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if scored else None,
            num_cached_tokens=sequence.num_cached,
        )

    def _log_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the model itself, before penalties and temperature; rows without a token do not appear in any ranking."""
        scores = self.model.kernels.log_softmax(logits)
        scores[:, self._banned_ids] = -np.inf
        return scores

    def _share(self, sequence: Sequence) -> None:
        sequence.num_shared_pages = self.prefix_cache.share(
            sequence.ids, sequence.pages, sequence.num_computed, sequence.num_shared_pages, sequence.tree
        )

    def _pool(self, item: ScheduledSequence, hidden: NDArray[np.float32]) -> list[GenerationOutput]:
        """Take in a chunk's hidden states; the embedding once they are complete. Its pages are not kept for reuse."""
        sequence, pool = item.sequence, item.sequence.pool
        if pool is None:
            return []
        pool.add(sequence.num_computed, self.model.final_norm(hidden))
        sequence.num_computed += item.num_tokens
        if sequence.num_remaining:
            return []
        self.abort(sequence.request_id)
        return [GenerationOutput(sequence.request_id, finish_reason="stop", embedding=pool.result())]

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


def _grouped(ready: list[tuple[ScheduledSequence, int]]) -> Iterator[list[tuple[ScheduledSequence, int]]]:
    """Cut into groups of at most `_LOGIT_ROWS` rows of logits."""
    group: list[tuple[ScheduledSequence, int]] = []
    rows = 0
    for item, row in ready:
        if group and rows + 1 + len(item.draft) > _LOGIT_ROWS:
            yield group
            group, rows = [], 0
        group.append((item, row))
        rows += 1 + len(item.draft)
    if group:
        yield group
