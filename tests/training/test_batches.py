"""Batches: which samples are together, and that packed ones do not see each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch_models import CLASSES, VOCABULARY, gradients, largest_difference, random_examples, random_model, recompute

from glm4.training.batches import LengthBatches, collate, collate_packed
from glm4.training.config import PrefixConfig
from glm4.training.data.examples import TokenizedExample
from glm4.training.forward import forward_loss
from glm4.training.methods.prefix import insert_prefix

pytestmark = pytest.mark.train

LENGTHS = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 1003), 5, 2048).astype(int).tolist()


def test_collate() -> None:
    examples = [
        TokenizedExample(np.array([5, 6, 7], np.int32), np.array([True, False, True])),
        TokenizedExample(np.array([8, 9], np.int32), np.array([False, True])),
    ]
    batch = collate(examples, pad_id=1, multiple=4)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 1], [8, 9, 1, 1]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 3]],
        "loss_mask": [[False, False, True, False], [False, True, False, False]],
    }


def test_collate_packed() -> None:
    examples = [
        TokenizedExample(np.array([5, 6, 7], np.int32), np.array([False, False, True])),
        TokenizedExample(np.array([8, 9], np.int32), np.array([True, True])),
    ]
    batch = collate_packed(examples, pad_id=1, multiple=4)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]],
        "loss_mask": [[False, False, True, False, True, False, False, False]],
    }


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 25, 1003])
def test_every_sample_once_an_epoch(count: int, by_length: bool) -> None:
    sampler = LengthBatches(LENGTHS[:count], 8, seed=1, by_length=by_length)
    batches = list(sampler)
    assert sorted(sample for batch in batches for sample in batch) == list(range(count))
    assert len(batches) == len(sampler) == -(-count // 8)
    assert all(len(batch) == 8 for batch in batches[:-1])


def padded(batches: list[list[int]]) -> float:
    return sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches) / sum(LENGTHS)


def test_similar_lengths_go_together() -> None:
    assert padded(list(LengthBatches(LENGTHS, 8, seed=1))) < 1.15
    assert padded(list(LengthBatches(LENGTHS, 8, seed=1, by_length=False))) > 2


def test_lengths_have_no_trend() -> None:
    lengths = [np.mean([LENGTHS[i] for i in batch]) for batch in LengthBatches(LENGTHS, 8, seed=1)]
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 0.25


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, **settings: Any) -> list[list[int]]:
        sampler = LengthBatches(LENGTHS, 8, seed=seed, **settings)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return list(sampler)

    for settings in ({}, {"by_length": False}, {"max_tokens": 2048}):
        first = order(1, 0, **settings)
        assert order(1, 0, **settings) == first
        assert order(2, 0, **settings) != first
        assert order(1, 1, **settings) != first
        companions = [{frozenset(batch) for batch in order(1, epoch, **settings)} for epoch in (0, 1)]
        assert len(companions[0] & companions[1]) < 0.1 * len(companions[0])


def test_packing_fills_rows() -> None:
    sampler = LengthBatches(LENGTHS, 1, seed=1, max_tokens=2048)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    tokens = [sum(LENGTHS[i] for i in batch) for batch in batches]
    assert max(tokens) <= 2048
    assert sum(LENGTHS) / (len(batches) * 2048) > 0.93
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))


def test_a_sample_longer_than_a_row_is_alone() -> None:
    assert sorted(map(sorted, LengthBatches([50, 3, 4], 1, seed=1, max_tokens=10))) == [[0], [1, 2]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_packed_is_unpacked(name: str, prefix: bool, attention: str) -> None:
    """Losses and gradients, with and without recomputing, and with a prefix that each sample sees."""
    model = random_model(name)
    model.set_attn_implementation(attention)
    if prefix:
        insert_prefix(model, PrefixConfig(num_virtual_tokens=5))
    examples = random_examples([19, 7, 1, 12])
    loss, count = forward_loss(model, collate(examples, pad_id=0))
    (loss / count).backward()
    expected = gradients(model)
    for reentrant in (None, False, True):
        if reentrant is not None:
            recompute(model, reentrant)
        packed, packed_count = forward_loss(model, collate_packed(examples, pad_id=0, multiple=16))
        (packed / packed_count).backward()
        assert packed_count == count
        assert abs(packed - loss).item() / count.item() < 1e-5
        assert largest_difference(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("prefix", [False, True])
def test_packing_the_naive_ways_leaks(prefix: bool) -> None:
    """Positions that begin anew and no attention mask keep samples apart: with either wrong, they leak."""
    model = random_model()
    if prefix:
        insert_prefix(model, PrefixConfig(num_virtual_tokens=5))
    batch = collate_packed(random_examples([19, 12]), pad_id=0)
    right = {name: batch[name] for name in ("input_ids", "position_ids")}
    assert influence(model, right) < 1e-6
    assert influence(model, {**right, "attention_mask": torch.ones(1, 31, dtype=torch.int64)}) > 1e-2
    assert influence(model, {**right, "position_ids": torch.arange(31)[None]}) > 1e-2


def influence(model: Any, inputs: dict[str, Any]) -> float:
    """The largest change of logits of the second of two packed samples when the first (19 tokens) changes."""
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 1:19] = (other["input_ids"][:, 1:19] + 7) % VOCABULARY
    with torch.no_grad():
        first, second = (model(**each, use_cache=False).logits[:, 19:] for each in (inputs, other))
    return float((first - second).abs().max())
