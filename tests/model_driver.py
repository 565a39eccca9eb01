"""Drives `Transformer` by hand, below engine and scheduler: the tests choose every chunk, position and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels.base import Kernels
from glm4.loading.weights import load_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.precision import named_precision
from glm4.model.transformer import Transformer

Ids = NDArray[np.int32]
Logits = NDArray[np.float32]


@contextmanager
def loaded(path: Path, kernels: Kernels, dtype: str = "fp32") -> Iterator[Transformer]:
    """The model of a checkpoint; the files are closed afterwards."""
    with open_checkpoint(path) as checkpoint:
        yield load_model(checkpoint, named_precision(dtype, checkpoint.stored_precision), kernels)


class Session:
    """Sequences in one cache. Pages are dealt in a shuffled order, so that neighbours in a sequence lie apart."""

    def __init__(self, model: Transformer, lengths: Sequence[int], kv_dtype: str = "fp32") -> None:
        self.model = model
        self.cache = KVCache(model.config, sum(pages_for(n) for n in lengths) + 3, kv_dtype)
        order = np.random.RandomState(0).permutation(self.cache.allocate(self.cache.num_pages)).tolist()
        self.pages = [[order.pop() for _ in range(pages_for(n))] for n in lengths]
        self.computed = [0] * len(lengths)

    def hidden(self, rows: Mapping[int, Ids], first_position: int = 0) -> dict[int, Logits]:
        """One forward pass over `rows` (sequence → new ids), all positions shifted by `first_position`."""
        which = list(rows)
        batch = ForwardBatch.build(
            pages=[self.pages[s] for s in which],
            computed=[self.computed[s] for s in which],
            new=[len(rows[s]) for s in which],
        )
        batch = replace(batch, positions=batch.positions + np.int32(first_position))
        out = self.model.forward(np.concatenate([rows[s] for s in which]).astype(np.int32), batch, self.cache)
        for s in which:
            self.computed[s] += len(rows[s])
        return dict(zip(which, np.split(out, np.cumsum([len(rows[s]) for s in which])[:-1]), strict=True))

    def logits(self, rows: Mapping[int, Ids], first_position: int = 0) -> dict[int, Logits]:
        """Logits of every row of one pass."""
        hidden = self.hidden(rows, first_position)
        return {s: self.model.logits(np.ascontiguousarray(h)) for s, h in hidden.items()}


def forced_logits(model: Transformer, ids: Ids, chunk: int = 512, kv_dtype: str = "fp32") -> Logits:
    """Logits at every position of one sequence, fed in chunks."""
    session = Session(model, [len(ids)], kv_dtype)
    parts = [session.logits({0: ids[start : start + chunk]})[0] for start in range(0, len(ids), chunk)]
    return np.concatenate(parts)


def forced_argmax(model: Transformer, ids: Ids, kv_dtype: str = "fp32") -> NDArray[np.int64]:
    """Most likely next id at every position, without holding all logits (a vocabulary has 150,000 columns)."""
    hidden = Session(model, [len(ids)], kv_dtype).hidden({0: ids})[0]
    blocks = [np.ascontiguousarray(hidden[start : start + 32]) for start in range(0, len(hidden), 32)]
    return np.concatenate([model.logits(block).argmax(axis=1) for block in blocks])
