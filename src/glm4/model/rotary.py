"""Cosine and sine tables for rotary position embeddings, computed only as far as positions are used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# 4,096 positions × 32 frequencies × 2 tables × 4 bytes = 1 MiB per chunk for the 9B shape;
# a table of all 1,048,576 positions would be 256 MiB.
_CHUNK = 4096


class RotaryTable:
    """cos and sin of position × frequency, as float32 [positions, rotary_dim / 2].

    Angles are the float32 product of position and inverse frequency: training and every reference implementation
    round there, so a more exact product would deviate from them (GLM's `RotaryEmbedding`; transformers).
    """

    def __init__(self, rotary_dim: int, theta: float) -> None:
        exponents = (np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)).astype(np.float64)
        # The power correctly rounded to float32, as in torch; NumPy's own float32 power can be one unit off, which at
        # position 1,000,000 is a different angle.
        powers = (theta**exponents).astype(np.float32)
        self.inverse_frequencies: NDArray[np.float32] = np.float32(1.0) / powers
        self._chunks: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def lookup(self, positions: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rows of the tables for `positions` [T]; returns (cos, sin), each [T, rotary_dim / 2]."""
        chunk_ids = positions // _CHUNK
        first = int(chunk_ids[0]) if len(positions) else 0
        if not len(positions) or np.all(chunk_ids == first):
            cos, sin = self._chunk(first)
            rows = positions - first * _CHUNK
            return cos[rows], sin[rows]
        shape = (len(positions), len(self.inverse_frequencies))
        cos_out, sin_out = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for chunk_id in np.unique(chunk_ids):
            selected = chunk_ids == chunk_id
            cos, sin = self._chunk(int(chunk_id))
            rows = positions[selected] - chunk_id * _CHUNK
            cos_out[selected], sin_out[selected] = cos[rows], sin[rows]
        return cos_out, sin_out

    def _chunk(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if index not in self._chunks:
            positions = np.arange(index * _CHUNK, (index + 1) * _CHUNK, dtype=np.float32)
            angles = (positions[:, None] * self.inverse_frequencies[None, :]).astype(np.float64)
            self._chunks[index] = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
        return self._chunks[index]
