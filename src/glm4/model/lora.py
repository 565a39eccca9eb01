"""LoRA at inference: `y = W x + B (A x)` for the rows of sequences that use an adapter, beside rows that do not.

A and B go through `kernels.linear` like any other matrix, and the sum is one addition per number, so what a row gets
depends on the row and its adapter alone, whatever else is in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glm4.errors import OutOfMemoryError
from glm4.kernels import Kernels
from glm4.kernels.formats import PackedWeight, packed_nbytes
from glm4.model.config import ModelConfig

if TYPE_CHECKING:
    from glm4.model.transformer import LayerWeights

Float = NDArray[np.float32]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class LoraFactors:
    """Factors of one matrix [N, K]: a [r, K], b [N, r] with the scale inside."""

    a: PackedWeight
    b: PackedWeight


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter in memory.

    Attributes:
        factors: (layer, "qkv" | "o" | "gate_up" | "down") -> factors; matrices without any stay as they are.
        path: the folder it came from.
        rank: largest rank of a module.
        number: unique in this process, so that pages computed under it are told from those of any other.
    """

    factors: Mapping[tuple[int, str], LoraFactors]
    path: str = ""
    rank: int = 0
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed factors."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.factors.values())


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
    """Read and pack a PEFT adapter; see `weights.adapter` for what is accepted and the errors.

    Args:
        model_type: of the checkpoint, see `AdapterFile`.
        format: "fp32" or "bf16"; how the factors are kept.
        max_nbytes: what the packed factors may take.
        layers: of the model; where its channels were rescaled, the factors are rescaled alike. Empty: as in the file.

    Raises:
        OutOfMemoryError: they would take more; nothing was read.
        TensorError: a factor is not finite.
    """
    from glm4.model.weights.adapter import AdapterFile

    with AdapterFile(path, config, model_type) as file:
        needed = sum(
            packed_nbytes(format, shape.rank, shape.columns) + packed_nbytes(format, shape.rows, shape.rank)
            for shape in file.shapes.values()
        )
        if needed > max_nbytes:
            raise OutOfMemoryError(
                f"the adapter in {path} needs {needed / 1e6:.1f} MB, but {max(0, max_nbytes) / 1e6:.1f} MB are left "
                "for adapters; unload one, or allow more"
            )
        factors = {}
        for layer, key in file.shapes:
            a, b = file.load(layer, key)
            if layers:
                _rescale(a, b, key, layers[layer])
            factors[layer, key] = LoraFactors(kernels.pack(format, a), kernels.pack(format, b))
        return LoraAdapter(factors, str(path), file.rank)


def _rescale(a: Float, b: Float, key: str, layer: LayerWeights) -> None:
    """Fit factors, in place, to a layer whose channels were rescaled.

    A reads channels that are divided by their factor; B's rows of the up half write channels that are to be divided.
    """
    scales = {"qkv": layer.qkv_channel_scale, "gate_up": layer.gate_up_channel_scale, "down": layer.down_channel_scale}
    read, written = scales.get(key), scales["down"] if key == "gate_up" else None
    with np.errstate(over="ignore"):  # packing refuses what is not finite
        if read is not None:
            a *= read
        if written is not None:
            b[len(b) // 2 :] /= written[:, None]


@dataclass(frozen=True)
class AdapterRows:
    """Rows of a forward pass that use an adapter: a range, or their indices."""

    adapter: LoraAdapter
    rows: slice | NDArray[np.intp]


def rows_by_adapter(adapters: Sequence[LoraAdapter | None], counts: Sequence[int]) -> tuple[AdapterRows, ...]:
    """Group the rows of a pass; sequence s has `counts[s]` rows and uses `adapters[s]`."""
    spans: dict[LoraAdapter, list[tuple[int, int]]] = {}
    start = 0
    for adapter, count in zip(adapters, counts, strict=True):
        if adapter is not None:
            spans.setdefault(adapter, []).append((start, start + count))
        start += count
    groups = []
    for adapter, found in spans.items():
        first, last = found[0][0], found[-1][1]
        if last - first == sum(stop - start for start, stop in found):
            groups.append(AdapterRows(adapter, slice(first, last)))
        else:
            groups.append(AdapterRows(adapter, np.concatenate([np.arange(*span) for span in found])))
    return tuple(groups)


def add_adapters(kernels: Kernels, groups: Sequence[AdapterRows], layer: int, key: str, x: Float, y: Float) -> None:
    """Add `B (A x)` of each group's adapter to `y` [T, N] = W `x` [T, K] in place, in the group's rows only."""
    for group in groups:
        factors = group.adapter.factors.get((layer, key))
        if factors is not None:
            y[group.rows] += kernels.linear(kernels.linear(x[group.rows], factors.a), factors.b)
