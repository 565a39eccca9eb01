"""Greedy answers of a model in training, several prompts at a time.

transformers' `generate` cannot begin with the keys and values of a prefix in the cache, and PEFT's way to do so knows
nothing of prefixes that are parts of layers. This loop can, and serves every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from glm4.training.forward import causal_model
from glm4.training.methods.prefix import prefix_states, without_prefix


def greedy_answers(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    stop_ids: frozenset[int],
    *,
    max_tokens: int,
    batch_size: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[list[int]]:
    """The most likely tokens after each prompt, up to a stop token (included) or `max_tokens`.

    Args:
        model: with its adapter, as it is trained; in whichever mode, and afterwards in the same.
        prompts: int32 [T] each; they are padded at the left.
        precision: a context to compute in, such as autocast.
    """
    inner = causal_model(model)
    is_prefixed = hasattr(inner.base_model, "prefix")
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    was_training = inner.training
    inner.eval()  # checkpointing, for one, has no cache
    try:
        prefix = prefix_states(inner) if is_prefixed else None
        with torch.no_grad(), precision(), without_prefix(inner) if is_prefixed else nullcontext():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                found = _answer_batch(inner, [prompts[index] for index in batch], stop_ids, max_tokens, prefix)
                for index, ids in zip(batch, found, strict=True):
                    answers[index] = ids
    finally:
        inner.train(was_training)
    return answers


def _answer_batch(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    stop_ids: frozenset[int],
    max_tokens: int,
    prefix: torch.Tensor | None,
) -> list[list[int]]:
    embedding = model.get_input_embeddings().weight
    rows, width = len(prompts), max(map(len, prompts))
    ids = torch.zeros((rows, width), dtype=torch.int64)
    mask = torch.zeros((rows, width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    if prefix is not None:
        _fill(cache, prefix.to(embedding.device), model.config, rows)
        mask = torch.cat([torch.ones((rows, len(prefix)), dtype=torch.int64), mask], 1)
        positions = positions + len(prefix)
    ids, mask, positions = (tensor.to(embedding.device) for tensor in (ids, mask, positions))
    answers: list[list[int]] = [[] for _ in prompts]
    going = set(range(rows))
    for _ in range(max_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        best = output.logits[:, -1].argmax(-1)
        for row, token in enumerate(best.tolist()):
            if row in going:
                answers[row].append(token)
                if token in stop_ids:
                    going.discard(row)
        if not going:
            break
        ids, positions = best[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((rows, 1))], 1)
    return answers


def _fill(cache: Any, prefix: torch.Tensor, config: Any, rows: int) -> None:
    """Put a prefix [P, layers * 2 * kv heads * head dim] into an empty cache, for every row."""
    shape = (len(prefix), config.num_hidden_layers, 2, config.num_key_value_heads, -1)
    states = prefix.view(shape).permute(1, 2, 3, 0, 4)[:, :, None]  # [layers, 2, 1, heads, P, head dim]
    for layer, (keys, values) in enumerate(states.expand(-1, -1, rows, -1, -1, -1)):
        cache.update(keys, values, layer)
