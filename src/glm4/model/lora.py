"""LoRA at inference: `y = W x + B (A x)` for the rows of sequences that use an adapter, next to rows that do not.

A and B go through `kernels.linear` like any other matrix, and the sum is one addition per number, so a row's result
depends on the row and its adapter alone, whatever else is in the batch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import PackedWeight

Float = NDArray[np.float32]

_numbers = itertools.count(1)


def next_number() -> int:
    """A number for an adapter; none is given twice in this process."""
    return next(_numbers)


@dataclass(frozen=True)
class LoraFactors:
    """Factors of one matrix [N, K]: a [r, K], b [N, r], which includes the scale."""

    a: PackedWeight
    b: PackedWeight


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter in memory.

    Attributes:
        factors: (layer, "qkv" | "o" | "gate_up" | "down") -> factors; other matrices are unchanged.
        path: the folder it was loaded from.
        rank: largest rank of a module.
        number: unique in this process, to distinguish pages computed with this adapter from all others.
    """

    num_virtual_tokens: ClassVar[int] = 0

    factors: Mapping[tuple[int, str], LoraFactors]
    path: str = ""
    rank: int = 0
    number: int = field(default_factory=next_number)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed factors."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.factors.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the packed factors: the same for the same adapter, wherever it was loaded from."""
        found = hashlib.sha256()
        for (layer, name), pair in sorted(self.factors.items()):
            for weight in (pair.a, pair.b):
                found.update(f"{layer} {name} {weight.format} {weight.rows} {weight.cols}\n".encode())
                found.update(np.ascontiguousarray(weight.data).data)
        return found.hexdigest()


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
