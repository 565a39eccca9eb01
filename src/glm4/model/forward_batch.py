"""`ForwardBatch`: where each row of a forward pass goes in the cache, at which position, with which adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.model.kv_cache import slots_of
from glm4.model.lora import AdapterRows, LoraAdapter, rows_by_adapter


@dataclass(frozen=True)
class ForwardBatch:
    """Where each row of a forward pass goes in the cache.

    Attributes:
        block_tables: int32 [S, B], the pages of each sequence in order, padded with -1.
        query_starts: int32 [S + 1], sequence s owns rows query_starts[s]:query_starts[s + 1].
        context_lens: int32 [S], tokens in the cache once these rows are stored.
        slots: int64 [T], page * PAGE_SIZE + offset where each row's key and value go.
        positions: int32 [T], position of each row in its sequence, for the rotary embedding. Which rows it attends to
            is decided by their order in the cache alone.
        adapters: the rows that use a LoRA adapter.
    """

    block_tables: NDArray[np.int32]
    query_starts: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    slots: NDArray[np.int64]
    positions: NDArray[np.int32]
    adapters: tuple[AdapterRows, ...] = ()

    @classmethod
    def build(
        cls,
        pages: Sequence[Sequence[int]],
        computed: Sequence[int],
        new: Sequence[int],
        adapters: Sequence[LoraAdapter | None] | None = None,
        positions: Sequence[NDArray[np.int32]] | None = None,
    ) -> ForwardBatch:
        """Describe a pass over S sequences.

        Args:
            pages: pages of each sequence; enough for computed + new tokens.
            computed: tokens of each sequence that are already in the cache.
            new: rows each sequence contributes, at least 1.
            adapters: each sequence's adapter; None means that no sequence has one.
            positions: int32 [new] for each sequence; None counts them, as in text.
        """
        block_tables = np.full((len(pages), max(len(row) for row in pages)), -1, np.int32)
        slots, counted = [], []
        for index, (row, start, count) in enumerate(zip(pages, computed, new, strict=True)):
            block_tables[index, : len(row)] = row
            where = np.arange(start, start + count)
            slots.append(slots_of(row, where))
            counted.append(where.astype(np.int32))
        lens = np.asarray(computed, np.int32) + np.asarray(new, np.int32)
        starts = np.zeros(len(new) + 1, np.int32)
        np.cumsum(np.asarray(new, np.int32), out=starts[1:])
        groups = rows_by_adapter(adapters, new) if adapters is not None else ()
        return cls(block_tables, starts, lens, np.concatenate(slots), np.concatenate(positions or counted), groups)
