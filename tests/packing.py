"""Makes packed checkpoints of tiny models in every precision, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import Kernels
from glm4.model.precision import PRECISIONS
from glm4.model.weights.checkpoint import Checkpoint, open_checkpoint
from glm4.model.weights.names import CHANNEL_SCALES
from glm4.model.weights.packed import packed_shapes
from glm4.packed_checkpoint import Part, write_packed_checkpoint
from glm4.text_side import TextSide


def pack_folder(
    source: Path,
    folder: Path,
    dtype: str,
    kernels: Kernels,
    channel_scales: dict[str, NDArray[np.float32]] | None = None,
) -> Path:
    """A packed checkpoint of `source`, with the tensors packed whole, one by one.

    Args:
        channel_scales: canonical name -> values to write; all others are ones. The matrices are not rescaled.
    """
    precision, scaled = PRECISIONS[dtype], channel_scales is not None

    def parts(checkpoint: Checkpoint) -> Iterator[Part]:
        for name, shape in packed_shapes(checkpoint.config, scaled).items():
            if name.endswith(CHANNEL_SCALES):
                yield name, (channel_scales or {}).get(name, np.ones(shape, np.float32))
                continue
            values = checkpoint.load(name)
            yield name, values if len(shape) == 1 else kernels.pack(precision.format_of(name), values).data

    folder.mkdir(parents=True)
    with open_checkpoint(source) as checkpoint:
        text = TextSide.load(checkpoint)
        write_packed_checkpoint(folder, checkpoint, text.tokenizer, precision, parts(checkpoint), "a test", scaled)
    return folder
