"""Batches in the order in which one process trains on them; the same data in the same order for any number of processes.

Batch number i belongs to process i mod P. One process that accumulates P times as many batches per step therefore
takes the same steps as P processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

Rows = Sequence[Any]


class Blank(NamedTuple):
    """Stands in where an epoch has no batch left for this process: computed like the others, counted as nothing."""

    row: Any


class _WithBlanks(torch.utils.data.Dataset[Any]):
    """Rows by number; -1 - i is row i as a `Blank`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index] if index >= 0 else Blank(self._rows[-1 - index])


class _ProcessBatches(torch.utils.data.Sampler[list[int]]):
    """The share of one process in the batches of an epoch."""

    def __init__(self, batches_of: Callable[[int], list[list[int]]], process: int, processes: int) -> None:
        self._batches_of = batches_of
        self._process, self._processes = process, processes
        self._epoch = 0
        self._count = -(-len(batches_of(0)) // processes)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches_of(self._epoch)
        for first in range(0, len(batches), self._processes):
            at = first + self._process
            yield batches[at] if at < len(batches) else [-1]


class _Stream(torch.utils.data.IterableDataset[Any]):
    """Rows as they come, pass after pass, in batches of one process."""

    def __init__(self, rows: Iterable[Any], batch_size: int, process: int, processes: int) -> None:
        self._rows, self._size, self._process, self._processes = rows, batch_size, process, processes

    def __iter__(self) -> Iterator[list[Any]]:
        rows = itertools.chain.from_iterable(itertools.repeat(self._rows))
        batches = iter(lambda: list(itertools.islice(rows, self._size)), [])
        return itertools.islice(batches, self._process, None, self._processes)


class EpochLoader(torch.utils.data.DataLoader[Any]):
    """A loader that the trainer tells the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        if isinstance(self.batch_sampler, _ProcessBatches):
            self.batch_sampler.set_epoch(epoch)


def loader(
    rows: Rows | Iterable[Any],
    batches_of: Callable[[int], list[list[int]]],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    *,
    batch_size: int,
    process: int,
    processes: int,
    pin_memory: bool = False,
) -> EpochLoader:
    """A loader of one process.

    Args:
        rows: those with a length are read by number, others in their own order.
        batches_of: an epoch's number -> numbers of rows, batch by batch; not for rows without a length.
    """

    def make(items: Sequence[Any]) -> dict[str, Any]:
        if isinstance(items[0], Blank):
            return {**collate([items[0].row]), "blank": True}
        return collate(items)

    if isinstance(rows, Sequence):
        sampler = _ProcessBatches(batches_of, process, processes)
        return EpochLoader(_WithBlanks(rows), batch_sampler=sampler, collate_fn=make, pin_memory=pin_memory)
    stream = _Stream(rows, batch_size, process, processes)
    return EpochLoader(stream, batch_size=None, collate_fn=make, pin_memory=pin_memory)
