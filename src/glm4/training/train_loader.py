"""Batches in the order in which a process trains on them; the same steps for any number of processes.

Batch number i belongs to process i mod P. One process that accumulates P times as many batches per step therefore
takes the same steps as P processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from glm4.errors import TrainingError
from glm4.training.batches import LengthBatches

Rows: TypeAlias = Sequence[Any]
Order: TypeAlias = Callable[[int], list[list[int]]]
"""An epoch's number -> numbers of rows, batch by batch."""
MakeBatch: TypeAlias = Callable[[Sequence[Any]], dict[str, Any]]


class Share(NamedTuple):
    """Which batches are computed here: number `process` of every `processes`."""

    process: int = 0
    processes: int = 1


class _Blank(NamedTuple):
    """A row that stands in where no batch is left for this process: computed like others, counted as nothing."""

    row: Any


class _WithBlanks(torch.utils.data.Dataset[Any]):
    """Rows by number; -1 - i is row i as a `_Blank`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index] if index >= 0 else _Blank(self._rows[-1 - index])


class _ShareOfBatches(torch.utils.data.Sampler[list[int]]):
    """The share of one process in the batches of an epoch; as many as every other process has."""

    def __init__(self, order: Order, share: Share) -> None:
        self._order, self._share = order, share
        self._epoch = 0
        self._count = -(-len(order(0)) // share.processes)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._order(self._epoch)
        for first in range(0, len(batches), self._share.processes):
            at = first + self._share.process
            yield batches[at] if at < len(batches) else [-1]


class _Stream(torch.utils.data.IterableDataset[Any]):
    """Rows as they come, pass after pass, in batches of one process."""

    def __init__(self, rows: Iterable[Any], batch_size: int, share: Share) -> None:
        self._rows, self._size, self._share = rows, batch_size, share

    def __iter__(self) -> Iterator[list[Any]]:
        rows = self._passes()
        batches = iter(lambda: list(itertools.islice(rows, self._size)), [])
        return itertools.islice(batches, self._share.process, None, self._share.processes)

    def _passes(self) -> Iterator[Any]:
        while True:
            row = None
            for row in self._rows:
                yield row
            if row is None:
                raise TrainingError("a pass over the streamed data gave no sample to train on")


class EpochLoader(torch.utils.data.DataLoader[Any]):
    """A loader that the trainer tells the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        if isinstance(self.batch_sampler, _ShareOfBatches):
            self.batch_sampler.set_epoch(epoch)


def training_order(
    lengths: Sequence[int], batch_size: int, batches_per_step: int, *, seed: int, by_length: bool, max_tokens: int = 0
) -> Order:
    """The batches of an epoch, by its number; their count is the same in every epoch.

    Args:
        lengths: of the rows, in tokens.
        batches_per_step: of all processes; they have similar lengths.
        max_tokens: packing: a batch is as many rows as have this many tokens together.
    """
    if max_tokens:
        packs = list(LengthBatches(lengths, 1, seed=seed, max_tokens=max_tokens))

        def packed(epoch: int) -> list[list[int]]:
            return [packs[i] for i in np.random.default_rng((seed, epoch)).permutation(len(packs))]

        return packed
    steps = LengthBatches(lengths, batch_size * batches_per_step, seed=seed, by_length=by_length)

    def batches(epoch: int) -> list[list[int]]:
        steps.set_epoch(epoch)
        return [step[start : start + batch_size] for step in steps for start in range(0, len(step), batch_size)]

    return batches


def reading_order(lengths: Sequence[int], batch_size: int) -> Order:
    """Batches for evaluation, from long to short: what needs most memory comes first."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return lambda epoch: [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def loader(rows: Rows, order: Order, make: MakeBatch, share: Share, *, pin_memory: bool = False) -> EpochLoader:
    """A loader of the batches that an order names; batches that only fill up a step have 0 "items" and "tokens"."""

    def collate(items: Sequence[Any]) -> dict[str, Any]:
        if isinstance(items[0], _Blank):
            return {**make([items[0].row]), "items": 0, "tokens": 0}
        return make(items)

    sampler = _ShareOfBatches(order, share)
    return EpochLoader(_WithBlanks(rows), batch_sampler=sampler, collate_fn=collate, pin_memory=pin_memory)


def stream_loader(
    rows: Iterable[Any], batch_size: int, make: MakeBatch, share: Share, *, pin_memory: bool = False
) -> EpochLoader:
    """A loader without an end, of rows in their own order; it begins anew where they end."""
    return EpochLoader(_Stream(rows, batch_size, share), batch_size=None, collate_fn=make, pin_memory=pin_memory)
