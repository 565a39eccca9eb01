"""Batches: which samples go together, and the tensors that the model gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.training.data.examples import TokenizedExample

Batch = dict[str, torch.Tensor]
"""input_ids int64 [B, T], position_ids int64 [B, T], loss_mask bool [B, T] (token t is a target: row t - 1 predicts
it) and, where rows are padded and not packed, attention_mask int64 [B, T]."""

_POOL = 64
"""Batches whose samples are sorted by length together: enough for little padding, few enough for other neighbors in
each epoch."""


def collate(examples: Sequence[TokenizedExample], pad_id: int, multiple: int = 1) -> Batch:
    """One row per sample, padded at the right to the longest, rounded up to a multiple of `multiple`."""
    length = -(-max(len(example) for example in examples) // multiple) * multiple
    shape = (len(examples), length)
    ids = np.full(shape, pad_id, np.int64)
    attended = np.zeros(shape, np.int64)
    targets = np.zeros(shape, np.bool_)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.ids
        attended[row, : len(example)] = 1
        targets[row, : len(example)] = example.mask
    targets[:, 0] = False
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(attended),
        "position_ids": torch.arange(length).expand(shape).contiguous(),
        "loss_mask": torch.from_numpy(targets),
    }


def collate_packed(examples: Sequence[TokenizedExample], pad_id: int, multiple: int = 1) -> Batch:
    """All samples in one row, which do not see each other.

    transformers keeps them apart by their positions, which begin at 0 in each sample, but only if it is given neither
    an attention mask nor a cache: then variable-length attention gets the bounds of each sample, and other attention
    a block mask. Padding is a sample of its own.
    """
    padding = -sum(map(len, examples)) % multiple
    lengths = [len(example) for example in examples] + ([padding] if padding else [])
    ids = np.concatenate([*(example.ids for example in examples), np.full(padding, pad_id)])
    # The first token of a sample is predicted by nothing: the row before it belongs to another.
    targets = [np.concatenate([[False], example.mask[1:]]) for example in examples]
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]))[None],
        "loss_mask": torch.from_numpy(np.concatenate([*targets, np.zeros(padding, np.bool_)]).astype(np.bool_))[None],
    }


class LengthBatches:
    """Batches of samples of similar length, in random order: a batch sampler for `torch.utils.data.DataLoader`.

    Every epoch has every sample once; its last batch may be smaller. The order depends on seed and epoch alone, so a
    run resumes by skipping as many batches as it has consumed.

    Args:
        lengths: tokens of each sample.
        batch_size: samples per batch.
        by_length: False takes samples in random order.
        max_tokens: packing: batches are filled with as many samples as have this many tokens together, and
            `batch_size` does not count. A sample that is longer is a batch of its own.
    """

    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        by_length: bool = True,
        max_tokens: int = 0,
    ) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.by_length = by_length
        self.max_tokens = max_tokens
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Of this epoch; with packing, epochs differ a little."""
        if self.max_tokens:
            return len(self._batches())
        return (len(self.lengths) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches())

    def _batches(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        if self.max_tokens:
            return _filled(order, self.lengths, self.max_tokens)
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        if self.by_length and len(batches):
            pools = [batches[start : start + _POOL].ravel() for start in range(0, len(batches), _POOL)]
            by_length = [pool[np.argsort(-self.lengths[pool], kind="stable")] for pool in pools]
            batches = random.permutation(np.concatenate(by_length).reshape(-1, self.batch_size))
        found: list[list[int]] = batches.tolist()
        return found + ([order[whole:].tolist()] if whole < len(order) else [])


def _filled(order: NDArray[np.int64], lengths: NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Samples in the given order, each into the first of the latest open batches that has room for it."""
    batches: list[list[int]] = []
    open_batches: list[tuple[int, int]] = []  # (batch, room)
    for sample in order:
        need = int(lengths[sample])
        place = next((i for i, (_, room) in enumerate(open_batches) if room >= need), None)
        if place is None:
            batches.append([int(sample)])
            open_batches = [*open_batches[-(_POOL - 1) :], (len(batches) - 1, max_tokens - need)]
        else:
            batch, room = open_batches[place]
            batches[batch].append(int(sample))
            open_batches[place] = (batch, room - need)
    return batches
