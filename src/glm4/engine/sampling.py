"""Choosing the next token from one row of logits.

Order of operations: logit_bias, penalties, bans, grammar, then top_k, temperature, min_p, top_p, one draw. (top_k and
min_p compare with the best token, so their order relative to each other and to temperature does not matter.)
Log-probabilities are the model's own, before any of this.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glm4.engine.protocol import GenerationRequest
from glm4.errors import Glm4Error
from glm4.logprobs import TokenLogprobs

Float = NDArray[np.float32]

# A nucleus rarely has more tokens than this; if it does, the whole vocabulary is sorted.
_TOP_P_CANDIDATES = 256
_BLOCK = 32


class Sampler:
    """Sampling state of one sequence: its random stream, its penalties, and the tokens it has used.

    Args:
        request: provides options, prompt and stop ids.
        banned_ids: vocabulary rows that have no token and may never be sampled.
    """

    def __init__(self, request: GenerationRequest, banned_ids: NDArray[np.int64]) -> None:
        params = request.params
        self.params = params
        self._banned_ids = banned_ids
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed % (1 << 64)
        self._seed = (seed, request.sample_index)
        # Every id that ends the text, for min_tokens; the caller decides which of them end it.
        self._stop_ids = np.fromiter(request.stop_ids | set(params.stop_token_ids), np.int64)
        # Every distinct id in the prompt or output; the repetition penalty applies to them.
        self._seen = _distinct(np.asarray(request.prompt_ids, np.int64))
        self._output_counts: dict[int, int] = {}
        bias = params.logit_bias or {}
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias_values = np.fromiter(bias.values(), np.float32, len(bias))

    @cached_property
    def _random(self) -> np.random.Generator:
        """The random stream; a greedy sequence does not need one, and does not load the module for it."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self._seed)))

    def sample(self, logits: Float, num_output_tokens: int, allowed: NDArray[np.bool_] | None = None) -> int:
        """Choose the next token and remember it.

        Args:
            logits: float32 [vocab_size]; modified in place.
            num_output_tokens: tokens generated so far.
            allowed: bool [vocab_size], the grammar's mask; at least one True.
        """
        self._adjust(logits, num_output_tokens, allowed)
        token = self._greedy(logits) if self.params.greedy else self._draw(logits)
        self.remember(token)
        return token

    def remember(self, token: int) -> None:
        """Record a token that was not chosen here: a grammar forced it."""
        if token not in self._output_counts and self.params.repetition_penalty != 1.0 and token not in self._seen:
            self._seen = np.append(self._seen, token)
        self._output_counts[token] = self._output_counts.get(token, 0) + 1

    def _adjust(self, logits: Float, num_output_tokens: int, allowed: NDArray[np.bool_] | None) -> None:
        params = self.params
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias_values
        if params.repetition_penalty != 1.0:
            values = logits[self._seen]
            penalty = np.float32(params.repetition_penalty)
            logits[self._seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._output_counts and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._output_counts.keys(), np.int64)
            counts = np.fromiter(self._output_counts.values(), np.float32)
            logits[ids] -= np.float32(params.frequency_penalty) * counts + np.float32(params.presence_penalty)
        logits[self._banned_ids] = -np.inf
        if allowed is not None:
            np.putmask(logits, ~allowed, np.float32(-np.inf))
        if num_output_tokens < params.min_tokens and self._can_go_on(allowed):
            logits[self._stop_ids] = -np.inf

    def _can_go_on(self, allowed: NDArray[np.bool_] | None) -> bool:
        """Whether anything but a stop id may follow; if nothing may, the grammar overrides `min_tokens`."""
        if allowed is None:
            return True
        return bool(np.count_nonzero(allowed) > np.count_nonzero(allowed[self._stop_ids]))

    @staticmethod
    def _greedy(logits: Float) -> int:
        token = int(np.argmax(logits))
        _check_finite(logits[token])
        return token

    def _draw(self, logits: Float) -> int:
        params = self.params
        top = logits.max()
        _check_finite(top)
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(logits):
            ids = largest(logits, params.top_k)
            logits = logits[ids]
        weights = np.exp((logits - top) / np.float32(params.temperature))
        if params.min_p > 0.0:
            # Relative to the best token, so it does not matter that top_k came first.
            kept = np.flatnonzero(weights >= np.float32(params.min_p))
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        if params.top_p < 1.0:
            kept = nucleus(weights, params.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        index = pick(weights, self._random.random())
        return index if ids is None else int(ids[index])


def _distinct(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`np.unique` without its import of masked arrays on first call, which takes a twentieth of startup."""
    ordered = np.sort(ids)
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def pick(weights: Float, share: float) -> int:
    """The index at which the running sum of `weights` passes `share` (in [0, 1)) of their total.

    A whole vocabulary is first summed in strides, then entry by entry only within the stride that is hit: any order of
    summation works as long as it is always the same.
    """
    count = len(weights) // _BLOCK if len(weights) >= _BLOCK * _BLOCK else 0
    strided = weights[: count * _BLOCK].reshape(_BLOCK, count)
    rest = weights[count * _BLOCK :]
    sums = np.append(strided.sum(axis=0, dtype=np.float64), rest.sum(dtype=np.float64))
    cumulative = np.cumsum(sums)
    target = share * cumulative[-1]
    # Rounding may leave the target just above the last sum; an entry without weight must not be chosen then.
    stride = min(int(np.searchsorted(cumulative, target, side="right")), int(np.flatnonzero(sums)[-1]))
    entries = strided[:, stride] if stride < count else rest
    running = np.cumsum(entries, dtype=np.float64) + (cumulative[stride] - sums[stride])
    offset = min(int(np.searchsorted(running, target, side="right")), int(np.flatnonzero(entries)[-1]))
    return offset * count + stride if stride < count else count * _BLOCK + offset


def largest(values: Float, count: int) -> NDArray[np.int64]:
    """Indices (ascending) of the `count` largest values; among equal ones at the boundary, the first.

    Most of a vocabulary is far below the boundary, so it is not sorted: the `count`-th largest of the maxima of short
    blocks is a lower bound that few values reach.
    """
    if len(values) >= 4 * _BLOCK * count:
        # Blocks of every n-th value rather than of neighbors: a maximum over the long axis is a vector operation.
        maxima = values[: len(values) // _BLOCK * _BLOCK].reshape(_BLOCK, -1).max(axis=0)
        candidates = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    else:
        candidates = np.arange(len(values))
    order = np.argsort(-values[candidates], kind="stable")[:count]
    kept: NDArray[np.int64] = candidates[order]
    kept.sort()
    return kept


def nucleus(weights: NDArray[np.floating], top_p: float) -> NDArray[np.int64]:
    """Indices (ascending) of the smallest set of largest weights whose share of the sum reaches `top_p`."""
    target = top_p * float(weights.sum(dtype=np.float64))
    size = min(_TOP_P_CANDIDATES, len(weights))
    while True:
        candidates = largest(weights, size)
        # Stable order among equal weights: by id.
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        reached = np.cumsum(weights[order], dtype=np.float64)
        if reached[-1] >= target or size == len(weights):
            count = int(np.searchsorted(reached, target, side="left")) + 1
            return np.sort(order[:count])
        size = len(weights)


def token_logprobs(logprobs: Float, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probability and rank of `token_id` and the `num_top` most likely tokens of one row.

    Args:
        logprobs: float32 [vocab_size], log-softmax of the raw logits.
    """
    top: Sequence[tuple[int, float]] = ()
    if num_top == 1:  # what scoring asks for, of every token of a prompt
        index = int(np.argmax(logprobs))
        top = [(index, float(logprobs[index]))]
    elif num_top:
        best = largest(logprobs, num_top)
        best = best[np.argsort(-logprobs[best], kind="stable")]
        top = [(int(index), float(logprobs[index])) for index in best]
    own = logprobs[token_id]
    return TokenLogprobs(token_id, float(own), int(np.count_nonzero(logprobs > own)) + 1, tuple(top))


def _check_finite(value: np.floating) -> None:
    if not np.isfinite(value):
        raise Glm4Error("the model produced no finite logit; the checkpoint's weights are damaged or not a model")
