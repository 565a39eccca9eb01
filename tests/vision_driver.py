"""Runs a GLM-4V of our engine without a scheduler: a picture through its tower, a sequence through its layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.layers import Float
from glm4.model.transformer import Transformer
from glm4.model.vision import VisionTower

Positions = NDArray[np.int32]


def encode(tower: VisionTower, pixels: NDArray[np.uint8], max_rows: int = 1 << 20) -> Float:
    """The rows of a picture, computed in pieces."""
    encoding = tower.start(pixels)
    while encoding.result is None:
        encoding.advance(max_rows)
    return encoding.result


def picture_logits(
    model: Transformer,
    ids: NDArray[np.int32],
    positions: Positions,
    picture: tuple[int, Float],
    chunks: Sequence[int] = (),
    beside: int = 0,
) -> Float:
    """Logits of every row of one sequence with a picture, whose rows come in passes that end at `chunks`.

    Args:
        picture: its first row, and its rows.
        chunks: () is one pass.
        beside: rows of another sequence that precede it in every pass.
    """
    chunks, (at, seen), total = chunks or [len(ids)], picture, pages_for(len(ids))
    other = pages_for(beside * len(chunks)) if beside else 0
    cache = KVCache(model.config, total + other, "fp32")
    pages = list(range(total - 1, -1, -1))  # out of order
    out = []
    for number, (start, stop) in enumerate(zip([0, *chunks], chunks, strict=False)):
        first, last = max(start, at), min(stop, at + len(seen))
        rows = ((beside + first - start, seen[first - at : last - at]),) if first < last else ()
        counted = np.arange(beside * number, beside * (number + 1), dtype=np.int32)
        batch = ForwardBatch.build(
            pages=[list(range(total, total + other)), pages] if beside else [pages],
            computed=[beside * number, start] if beside else [start],
            new=[beside, stop - start] if beside else [stop - start],
            positions=[counted, positions[start:stop]] if beside else [positions[start:stop]],
        )
        hidden = model.forward(np.concatenate([counted + 2, ids[start:stop]]).astype(np.int32), batch, cache, rows)
        out.append(model.logits(np.ascontiguousarray(hidden[beside:])))
    return np.concatenate(out)
