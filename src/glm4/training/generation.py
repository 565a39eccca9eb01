"""Greedy answers of a model in training, several prompts at a time.

transformers' `generate` cannot begin with the keys and values of a prefix in the cache, and PEFT's way to do so knows
nothing of prefixes that are parts of layers. This loop can, and serves every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache

from glm4.training.data.examples import TokenizedExample
from glm4.training.forward import causal_model
from glm4.training.methods.prefix import prefix_states, without_prefix


def greedy_answers(
    model: Any,
    prompts: Sequence[TokenizedExample],
    collate: Callable[[Sequence[TokenizedExample]], Mapping[str, torch.Tensor]],
    stop_ids: frozenset[int],
    *,
    max_tokens: int,
    batch_size: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[list[int]]:
    """The most likely tokens after each prompt, up to a stop token (included) or `max_tokens`.

    Args:
        model: with its adapter, as it is trained; in whichever mode, and afterwards in the same.
        collate: makes a batch of prompts, with their pictures; see `batches.collate` and `PictureCollator`.
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
                indices = order[start : start + batch_size]
                batch = _left_padded(collate([prompts[index] for index in indices]))
                found = _answer_batch(inner, batch, stop_ids, max_tokens, prefix)
                for index, ids in zip(indices, found, strict=True):
                    answers[index] = ids
    finally:
        inner.train(was_training)
    return answers


def _left_padded(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose padding has moved from the right to the left, where answers do not get in its way."""
    moved = {name: tensor for name, tensor in batch.items() if name != "loss_mask"}
    padding = (1 - batch["attention_mask"]).sum(1)
    for name in ("input_ids", "attention_mask", "position_ids"):
        rows = zip(batch[name], padding.tolist(), strict=True)
        moved[name] = torch.stack([row.roll(shift) for row, shift in rows])
    if "picture_places" in batch:
        places = batch["picture_places"].clone()
        places[:, 1] += padding[places[:, 0]]
        moved["picture_places"] = places
    return moved


def _answer_batch(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    stop_ids: frozenset[int],
    max_tokens: int,
    prefix: torch.Tensor | None,
) -> list[list[int]]:
    device = model.get_input_embeddings().weight.device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    rows = len(inputs["input_ids"])
    cache = DynamicCache(config=model.config)
    if prefix is not None:
        _fill(cache, prefix.to(device), model.config, rows)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask.new_ones((rows, len(prefix))), mask], 1)
        inputs["position_ids"] = inputs["position_ids"] + len(prefix)
    answers: list[list[int]] = [[] for _ in range(rows)]
    going = set(range(rows))
    for _ in range(max_tokens):
        output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        best = output.logits[:, -1].argmax(-1)
        for row in sorted(going):
            answers[row].append(int(best[row]))
            if answers[row][-1] in stop_ids:
                going.discard(row)
        if not going:
            break
        mask = inputs["attention_mask"]
        inputs = {  # pictures are in the cache
            "input_ids": best[:, None],
            "attention_mask": torch.cat([mask, mask.new_ones((rows, 1))], 1),
            "position_ids": inputs["position_ids"][:, -1:] + 1,
        }
    return answers


def _fill(cache: Any, prefix: torch.Tensor, config: Any, rows: int) -> None:
    """Put a prefix [P, layers * 2 * kv heads * head dim] into an empty cache, for every row."""
    shape = (len(prefix), config.num_hidden_layers, 2, config.num_key_value_heads, -1)
    states = prefix.view(shape).permute(1, 2, 3, 0, 4)[:, :, None]  # [layers, 2, 1, heads, P, head dim]
    for layer, (keys, values) in enumerate(states.expand(-1, -1, rows, -1, -1, -1)):
        cache.update(keys, values, layer)
