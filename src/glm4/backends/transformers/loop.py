"""`GenerationLoop`: continuous batching over a model class of transformers."""

from __future__ import annotations

import logging
import traceback
from collections import Counter, deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.backends.transformers.cached_batch import CachedBatch, Member, joined
from glm4.backends.transformers.device import is_out_of_memory, release_memory
from glm4.backends.transformers.lora import AdapterHooks, DeviceAdapter, DevicePrefix
from glm4.engine.protocol import EngineStats, GenerationOutput, GenerationRequest
from glm4.engine.scheduler import fair_shares
from glm4.engine.sequence import Sequence
from glm4.errors import GrammarError, OutOfMemoryError

log = logging.getLogger("glm4.transformers")

# Prompts that a step computes parts of: each is a forward pass of its own.
_MOST_PROMPTS = 8
# Ids that a grammar forced on a decoding sequence, beyond which a pass of its own is faster than one step for each.
_MOST_FORCED = 8
# Rows of logits held at once.
_LOGIT_ROWS = 64

_Ready = list[tuple[Member, torch.Tensor]]
"""Members whose ids are all computed, with the hidden state after the last one: [hidden_size]."""


class GenerationLoop:
    """Prompts are computed one by one, in parts; sequences that decode share one left-padded batch.

    The batch is formed again when a sequence joins or leaves. If sequences outgrow the cache, the youngest gives up its
    place and is computed again later. Synchronous and single-threaded, except `stats`.

    Args:
        model: a `…ForCausalLM` whose `model` returns hidden states after the final norm.
        cache_tokens: limit on sequences × the longest of them, in tokens; at least `max_model_len`.
        max_step_tokens: rows of prompts that a step computes.
        banned_ids: vocabulary rows that have no token.
    """

    def __init__(
        self,
        model: Any,
        hooks: AdapterHooks,
        device: torch.device,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_step_tokens: int,
        cache_tokens: int,
        banned_ids: NDArray[np.int64],
    ) -> None:
        self._model = model
        self._hooks = hooks
        self._device = device
        self._max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens
        self._cache_tokens = cache_tokens
        self._limit = cache_tokens  # less for a while after an error for lack of memory
        self._banned_ids = banned_ids
        self._members: dict[str, Member] = {}
        self._waiting: deque[Member] = deque()
        self._running: list[Member] = []  # in order of admission
        self._prefilling: list[CachedBatch] = []  # of one member each
        self._joining: list[CachedBatch] = []  # to be part of the next batch
        self._decoding: CachedBatch | None = None
        self._num_preemptions = 0

    def add(self, request: GenerationRequest, adapter: DeviceAdapter | DevicePrefix | None) -> None:
        """Queue a request that was checked."""
        num_virtual = 0 if adapter is None else adapter.num_virtual_tokens
        member = Member(Sequence(request, self._banned_ids, self._max_model_len, num_virtual), adapter)
        self._members[request.request_id] = member
        self._waiting.append(member)

    def abort(self, request_id: str) -> None:
        """Forget a request; its part of the cache is freed now or with the next step."""
        member = self._members.pop(request_id, None)
        if member is None:
            return
        for place in (self._running, self._waiting):
            if member in place:
                place.remove(member)
        if not self._running:
            self._prefilling, self._joining, self._decoding = [], [], None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._members

    def has_unfinished_requests(self) -> bool:
        """True while `step` has work to do."""
        return bool(self._members)

    def stats(self) -> EngineStats:
        """What the loop is doing; a page of the cache is one token. From any thread, only roughly simultaneous."""
        running, waiting = list(self._running), list(self._waiting)
        using = {m.sequence.request.adapter for m in running if m.sequence.request.adapter is not None}
        queued = {m.sequence.request.adapter for m in waiting if m.sequence.request.adapter is not None}
        return EngineStats(
            num_running=len(running),
            num_waiting=len(waiting),
            kv_pages_used=sum(m.sequence.num_computed for m in running),
            kv_pages_total=self._cache_tokens,
            num_preemptions=self._num_preemptions,
            running_adapters=tuple(sorted(using)),
            waiting_adapters=tuple(sorted(queued - using)),
        )

    def step(self) -> list[GenerationOutput]:
        """A pass over the decoding sequences, and one over a part of each of the oldest prompts."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[GenerationOutput]:
        self._admit()
        for member in self._running:
            if not member.sequence.wants_prompt_logprobs():  # a prompt to be scored is computed first, by itself
                member.sequence.attempt(member.sequence.append_forced)
        while len(self._running) > 1 and _cached_tokens(self._running) > self._limit:
            self._preempt()
        self._form_batch()
        if self._decoding is not None:
            self._run(self._decoding, 1)
        self._prefill()
        news = [m for m in self._members.values() if m.sequence.end is not None or m.sequence.unreported]
        return [self._report(member) for member in news]

    def _report(self, member: Member) -> GenerationOutput:
        sequence = member.sequence
        try:
            output = sequence.report()
        except Exception as error:
            sequence.fail(error)
            output = sequence.report()
        if sequence.end is not None:
            self.abort(sequence.request_id)
            self._limit = min(self._cache_tokens, self._limit + self._limit // 8 + 1)
        return output

    # Places

    def _admit(self) -> None:
        while len(self._running) < self._max_num_seqs and (member := self._next()) is not None:
            if self._running and _cached_tokens([*self._running, member]) > self._limit:
                return
            self._waiting.remove(member)
            self._running.append(member)
            self._prefilling.append(CachedBatch.of(member))

    def _next(self) -> Member | None:
        """The first waiting sequence whose group may have another one running."""
        running = Counter(member.sequence.request.group for member in self._running)
        for member in self._waiting:
            request = member.sequence.request
            if request.max_running is None or running[request.group] < request.max_running:
                return member
        return None

    def _preempt(self) -> None:
        """Let the youngest start over later. Batches drop a member that is not the current one of its request."""
        old = self._running.pop()
        member = Member(old.sequence, old.adapter)
        member.sequence.num_computed = 0
        self._members[member.sequence.request_id] = member
        self._waiting.appendleft(member)
        self._num_preemptions += 1

    def _goes_on(self, member: Member) -> bool:
        return self._members.get(member.sequence.request_id) is member and member.sequence.end is None

    def _form_batch(self) -> None:
        """Let sequences join the batch that decodes, and others leave it; at most once in a step, as it copies."""
        self._prefilling = [batch for batch in self._prefilling if self._goes_on(batch.members[0])]
        batches, self._joining = [batch for batch in self._joining if self._goes_on(batch.members[0])], []
        batch, self._decoding = self._decoding, None
        members = [member for one in (batch, *batches) if one is not None for member in one.members]
        try:
            if batch is not None:
                going = [member for member in batch.members if self._goes_on(member)]
                many = [member for member in going if member.sequence.num_remaining > _MOST_FORCED]
                self._prefilling += [batch.keep([member]) for member in many]
                staying = [member for member in going if member not in many]
                batches = [batch.keep(staying), *batches] if staying else batches
            self._decoding = joined(batches) if batches else None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Caches are half copied: these sequences start over, fewer at a time.
            self._prefilling = [one for one in self._prefilling if one.members[0] not in members]
            self._limit_cache(error)
            while any(member in self._running for member in members):
                self._preempt()

    def _limit_cache(self, error: Exception) -> None:
        """Keep less in the cache than now, after an error for lack of memory. One sequence alone always runs."""
        traceback.clear_frames(error.__traceback__)  # they hold what the pass had computed
        self._limit = _cached_tokens(self._running) - 1
        log.warning("%s is out of memory; the cache holds %d tokens for now", self._device, self._limit)
        release_memory(self._device)

    # Passes

    def _prefill(self) -> None:
        """A part of each of the oldest prompts; those that are done join the batch of the next step."""
        chosen = self._prefilling[:_MOST_PROMPTS]
        shares = fair_shares([batch.members[0].sequence.num_remaining for batch in chosen], self._max_step_tokens)
        for batch, share in zip(chosen, shares, strict=True):
            member = batch.members[0]
            if share and self._goes_on(member):  # else it was preempted just now
                self._run(batch, share)
                # It has sampled; a grammar may have forced a few ids more.
                if member.sequence.unreported and member.sequence.num_remaining <= _MOST_FORCED:
                    self._prefilling.remove(batch)
                    self._joining.append(batch)

    def _run(self, batch: CachedBatch, count: int) -> None:
        """A pass over the next `count` ids of each member, and a new token where it computed all ids.

        If it fails, each member gets its own, and those that fail again end with the error.
        """
        try:
            hidden = self._forward(batch, count)
        except Exception as error:
            if is_out_of_memory(error) and len(self._running) > 1:
                self._limit_cache(error)
                self._preempt()
            elif len(batch.members) == 1:
                batch.members[0].sequence.fail(self._named(error))
            else:
                log.warning("a pass over %d sequences failed; each gets its own", len(batch.members), exc_info=True)
                parts = [batch.keep([member]) for member in batch.members]
                self._decoding = None
                self._joining += parts
                for part in parts:
                    self._run(part, count)
            return
        ready: _Ready = []
        for member, rows in zip(batch.members, hidden, strict=True):
            member.sequence.attempt(self._take, member, rows, ready)
        for start in range(0, len(ready), _LOGIT_ROWS):
            self._sample(ready[start : start + _LOGIT_ROWS])

    def _forward(self, batch: CachedBatch, count: int) -> torch.Tensor:
        """Hidden states after the final norm: [members, count, hidden_size]."""
        batch.begin()
        ids, mask, positions = batch.inputs(count, self._device)
        self._hooks.use([member.adapter for member in batch.members], self._device)
        try:
            # By position, because releases of transformers differ in the cache's name.
            output = self._model.model(ids, mask, positions, batch.cache, use_cache=True)
        except BaseException:
            batch.roll_back()
            raise
        batch.extended(count)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _take(self, member: Member, rows: torch.Tensor, ready: _Ready) -> None:
        """A member's part of a pass: [count, hidden_size]."""
        sequence = member.sequence
        if member.adapter is not None and not rows.isfinite().all():
            # Finite factors can still overflow, and a bad adapter must not end other requests.
            sequence.end = "abort", None
            return
        if sequence.wants_prompt_logprobs():
            first, last = sequence.rows_to_score(len(rows))
            for start in range(first, last, _LOGIT_ROWS):
                sequence.append_scores(
                    self._log_probabilities(self._logits(rows[start : min(start + _LOGIT_ROWS, last)]))
                )
        sequence.num_computed += len(rows)
        if sequence.pool is not None:
            first = sequence.num_computed - len(rows) - sequence.num_virtual
            sequence.pool.add(first, rows.float().cpu().numpy())
            if not sequence.num_remaining:
                # An adapter's values can be finite but so large that the norm makes them zero.
                usable = member.adapter is None or sequence.pool.has_direction
                sequence.embedding = sequence.pool.result() if usable else None
                sequence.end = "stop" if usable else "abort", None
        elif not sequence.num_remaining:
            ready.append((member, rows[-1]))

    def _sample(self, ready: _Ready) -> None:
        """A new token for each member; one by one if their logits cannot be computed together."""
        try:
            logits = self._logits(torch.stack([row for _, row in ready]))
        except Exception as error:
            if len(ready) == 1:
                ready[0][0].sequence.fail(self._named(error))
            else:
                for one in ready:
                    self._sample([one])
            return
        for (member, _), row in zip(ready, logits, strict=True):
            member.sequence.attempt(self._advance, member.sequence, row)

    def _advance(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        try:
            sequence.append_forced()  # for the first time, if the prompt had to be scored first
            if sequence.end is None and not sequence.num_remaining:
                sequence.append_next(logits, self._log_probabilities)
                sequence.append_forced()
        except GrammarError:
            sequence.end = "length", None

    def _logits(self, hidden: torch.Tensor) -> NDArray[np.float32]:
        """On the host: [rows, hidden_size] -> float32 [rows, vocab_size]."""
        logits: NDArray[np.float32] = self._model.lm_head(hidden).float().cpu().numpy()
        return logits

    def _log_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's own, before penalties and temperature; rows without a token do not appear in any ranking."""
        scores: NDArray[np.float32] = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
        scores[:, self._banned_ids] = -np.inf
        return scores

    def _named(self, error: Exception) -> Exception:
        if not is_out_of_memory(error):
            return error
        return OutOfMemoryError(f"{self._device} ran out of memory; shorten the request, or lower max_model_len")


def _cached_tokens(members: list[Member]) -> int:
    """What the cache holds when all of them decode, after the next token."""
    return len(members) * (1 + max((len(member.sequence.ids) for member in members), default=0))
