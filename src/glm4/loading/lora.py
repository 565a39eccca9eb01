"""From a PEFT adapter on disk to packed factors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.errors import OutOfMemoryError
from glm4.kernels.base import Kernels
from glm4.kernels.formats import packed_nbytes
from glm4.model.config import ModelConfig
from glm4.model.layers import LayerWeights
from glm4.model.lora import LoraAdapter, LoraFactors

Float = NDArray[np.float32]


def read_adapter(
    path: Path,
    config: ModelConfig,
    model_type: str,
    kernels: Kernels,
    *,
    format: str,
    max_nbytes: int,
    layers: Sequence[LayerWeights],
) -> LoraAdapter:
    """Read and pack a PEFT adapter; see `checkpoints.peft_adapter` for what is accepted and the errors.

    Args:
        model_type: of the checkpoint, see `AdapterFile`.
        format: "fp32" or "bf16", in which the factors are kept.
        max_nbytes: maximum bytes of the packed factors.
        layers: of the model; factors are rescaled where its channels were. Empty leaves them as in the file.

    Raises:
        OutOfMemoryError: they would exceed `max_nbytes`; nothing was read.
        TensorError: a factor is not finite.
    """
    from glm4.checkpoints.peft_adapter import AdapterFile  # keeps a start without an adapter fast

    with AdapterFile(path, config, model_type) as file:
        needed = sum(
            packed_nbytes(format, shape.rank, shape.columns) + packed_nbytes(format, shape.rows, shape.rank)
            for shape in file.shapes.values()
        )
        if needed > max_nbytes:
            raise OutOfMemoryError(
                f"the adapter in {path} needs {needed / 1e6:.1f} MB, but {max(0, max_nbytes) / 1e6:.1f} MB are left "
                "for adapters; unload one, or raise the limit"
            )
        factors = {}
        for layer, key in file.shapes:
            a, b = file.load(layer, key)
            if layers:
                _rescale(a, b, key, layers[layer])
            factors[layer, key] = LoraFactors(kernels.pack(format, a), kernels.pack(format, b))
        return LoraAdapter(factors, str(path), file.rank)


def _rescale(a: Float, b: Float, key: str, layer: LayerWeights) -> None:
    """Rescale factors, in place, for a layer whose channels were rescaled.

    A reads channels that are divided by their factor; B's rows of the up half write channels that must be divided.
    """
    read = getattr(layer, f"{key}_channel_scale", None)
    written = layer.down_channel_scale if key == "gate_up" else None
    with np.errstate(over="ignore"):  # packing refuses non-finite values
        if read is not None:
            a *= read
        if written is not None:
            b[len(b) // 2 :] /= written[:, None]
