"""The numbers of an exported model: read and rounded a slab at a time into a scratch file, mapped from there.

OpenVINO holds all constants of a model until it is saved. Mapped, they take address space and file cache instead of
memory. int8 and int4 have exactly the values of our own engine; a packed checkpoint keeps its codes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.packed_format import PackedSource
from glm4.errors import CheckpointError
from glm4.kernels import get_kernels
from glm4.kernels.formats import COL_GROUP, INT4_OFFSET_UNIT, ROW_BLOCK, SPAN_CELLS, PackedWeight, weight_format
from glm4.kernels.reference_packing import bf16_bits, int4_cells, int8_cells
from glm4.loading.weights import Progress, floats, kept_codes, pack_stored, read_stored
from glm4.model.precision import Precision
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS, head_name

_SLAB_ROWS = 32 * ROW_BLOCK  # rows of a packed matrix that are unpacked at a time
_ALIGNMENT = 64
_INTEGERS = ("int8", "int4")
_TABLES = ("embed_tokens", "lm_head")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the scratch file.

    Attributes:
        format: "fp32" (vectors, too), "bf16", "int8" or "int4".
        shape: (rows, cols) or (numbers,).
        arrays: of the first two, `values` float32 or uint16 (the upper halves). Of the others `codes`, int8 or uint8
            [rows, cols / 2] (two's complement, the first column in the low nibble), and float32 [rows, groups] `scale`.
            Layers' int4 adds `offset` int8 [rows, groups] in units of `unit` float32 [rows], other matrices may have
            `zero` [rows, groups]: weight = scale * (code - zero) + unit * offset.
    """

    format: str
    shape: tuple[int, ...]
    arrays: Arrays

    def rows(self, index: slice | NDArray[np.intp]) -> StoredTensor:
        """Some rows: views for a slice, else copies."""
        arrays = {name: array[index] for name, array in self.arrays.items()}
        count = len(next(iter(arrays.values())))
        return StoredTensor(self.format, (count, *self.shape[1:]), arrays)


class _Place(NamedTuple):
    """Where an array is in the scratch file."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Scratch:
    """The tensors of a model in a file; written whole, then mapped.

    Args:
        path: of the file, which the caller deletes.
        total: expected bytes of it, for `progress`.
        progress: called with ("exporting", done, total).
    """

    def __init__(
        self, path: Path, checkpoint: Checkpoint, precision: Precision, total: int, progress: Progress | None = None
    ) -> None:
        self._at = 0
        self._tensors: dict[str, tuple[str, tuple[int, ...], dict[str, _Place]]] = {}
        with path.open("wb", buffering=1 << 20) as file:
            self._file = file
            for name, format, slabs in _stored(checkpoint, precision):
                places = self._write(slabs)
                shape = checkpoint.shape(head_name(checkpoint.config) if name == "lm_head" else name)
                self._tensors[name] = (format, shape, places)
                if progress is not None:
                    progress("exporting", min(self._at, total), total)
        with path.open("rb") as file:
            # Private and writable: OpenVINO takes no read-only memory.
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def names(self) -> list[str]:
        """Canonical names of the tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> StoredTensor:
        """A tensor, as views of the mapped file."""
        format, shape, places = self._tensors[name]
        arrays = {key: self._view(place) for key, place in places.items()}
        return StoredTensor(format, shape, arrays)

    def vector(self, name: str) -> NDArray[np.float32]:
        """A vector, as a view of the mapped file."""
        return self.tensor(name).arrays["values"]

    def _view(self, place: _Place) -> NDArray[Any]:
        count = int(np.prod(place.shape, dtype=np.int64))
        return np.frombuffer(self._mapping, place.dtype, count, place.start).reshape(place.shape)

    def _write(self, slabs: Iterator[Arrays]) -> dict[str, _Place]:
        """The first array of each slab goes to disk at once; the others, which are small, follow together."""
        first, rest = "", list[Arrays]()
        self._align()
        start, rows, last = self._at, 0, np.empty(0)
        for slab in slabs:
            first, last = next(iter(slab.items()))
            self._put(last)
            rows += len(last)
            rest.append({name: array for name, array in slab.items() if name != first})
        places = {first: _Place(start, last.dtype, (rows, *last.shape[1:]))}
        for name in rest[0]:
            whole = np.concatenate([slab[name] for slab in rest])
            self._align()
            places[name] = _Place(self._at, whole.dtype, whole.shape)
            self._put(whole)
        return places

    def _align(self) -> None:
        self._put(np.zeros(-self._at % _ALIGNMENT, np.uint8))

    def _put(self, array: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(array).data)
        self._at += array.nbytes


def _stored(checkpoint: Checkpoint, precision: Precision) -> Iterator[tuple[str, str, Iterator[Arrays]]]:
    """(name, format, slabs of rows) of every tensor in model order. Slabs must be read before the next tensor.

    Names are canonical; a head with finer rows for frequent tokens is "lm_head", also where it is tied.
    """
    coded, packed = kept_codes(checkpoint, precision), checkpoint.packed
    for name in checkpoint.tensor_names():
        format = "fp32" if len(checkpoint.shape(name)) == 1 else precision.format_of(name)
        if name.endswith("_channel_scale") or name in (FREQUENT_HEAD, FREQUENT_TOKENS):
            continue
        if packed is None or format not in _INTEGERS:
            yield name, format, _rounded_slabs(checkpoint, name, format, coded)
        elif name != "lm_head" or FREQUENT_HEAD not in packed.names():
            yield name, format, _packed_slabs(packed, name)
    if packed is not None and FREQUENT_HEAD in packed.names():
        yield "lm_head", "int8", _mixed_slabs(packed, head_name(checkpoint.config))


def _packed_slabs(source: PackedSource, name: str) -> Iterator[Arrays]:
    whole = source.weight(name)
    block = weight_format(whole.format).block_nbytes(whole.cols)
    for row in range(0, whole.rows, _SLAB_ROWS):
        rows = min(_SLAB_ROWS, whole.rows - row)
        data = whole.data[row // ROW_BLOCK * block : -(-(row + rows) // ROW_BLOCK) * block]
        yield integer_arrays(PackedWeight(data, whole.format, rows, whole.cols), table=name in _TABLES)
    source.release(name)


def _rounded_slabs(checkpoint: Checkpoint, name: str, format: str, coded: set[str]) -> Iterator[Arrays]:
    kernels = get_kernels()
    for _, stored in read_stored(checkpoint, [name], coded):
        if format in _INTEGERS:
            yield integer_arrays(pack_stored(format, stored, kernels), table=name in _TABLES)
            continue
        values = floats(stored)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{checkpoint.path}: {name} holds numbers that are not finite; it is damaged")
        yield {"values": bf16_bits(np.ascontiguousarray(values)) if format == "bf16" else values}


def _mixed_slabs(source: PackedSource, name: str) -> Iterator[Arrays]:
    """The head in int8, which holds the codes of int4 as they are, with the finer rows of frequent tokens."""
    finer = integer_arrays(source.weight(FREQUENT_HEAD))
    ids, start = source.vector(FREQUENT_TOKENS).astype(np.intp), 0
    for slab in _packed_slabs(source, name):
        nibbles = np.stack([slab["codes"] << np.uint8(4), slab["codes"]], axis=2).view(np.int8) >> np.int8(4)
        codes, stop = nibbles.reshape(len(nibbles), -1), start + len(nibbles)
        which = np.flatnonzero((ids >= start) & (ids < stop))
        rows = ids[which] - start
        codes[rows], slab["zero"][rows] = finer["codes"][which], 0
        slab["scale"][rows] = np.repeat(finer["scale"][which], len(slab["scale"][0]) // len(finer["scale"][0]), axis=1)
        yield {**slab, "codes": codes}
        start = stop


def integer_arrays(weight: PackedWeight, *, table: bool = False) -> Arrays:
    """The arrays of `StoredTensor` for an int8 or int4 matrix; with `zero` instead of `offset` for a table."""
    rows, cols = weight.rows, weight.cols
    if weight.format == "int8":
        codes, spans = int8_cells(weight)
        scale = _grouped(_flat(spans[..., None], rows), COL_GROUP * SPAN_CELLS, cols)
        return {"codes": _flat(codes, rows)[:, :cols], "scale": scale}
    cells = int4_cells(weight)
    unit = cells.unit.reshape(-1)[:rows]
    scale = _flat(cells.scale[..., None], rows).astype(np.float32) * unit[:, None]
    quants = _flat(cells.quants * (cells.scale != 0)[..., None], rows)[:, :cols].view(np.uint8) & np.uint8(15)
    codes = quants[:, 0::2] | quants[:, 1::2] << np.uint8(4)
    unit, offset = unit * np.float32(INT4_OFFSET_UNIT), _flat(cells.offset[..., None], rows)
    arrays = {"codes": codes, "scale": scale, "offset": offset.astype(np.int8)}
    if table:
        base, flat = offset * unit[:, None], scale == 0
        # A group of one number, whose codes are 0, is that number * (0 - -1).
        arrays["scale"] = np.where(flat, base, scale).astype(np.float32)
        arrays["zero"] = np.where(flat, np.float32(-1), -base / np.where(flat, np.float32(1), scale)).astype(np.float32)
        del arrays["offset"]
    grouped = {name: array if name == "codes" else _grouped(array, COL_GROUP, cols) for name, array in arrays.items()}
    return grouped if table else {**grouped, "unit": unit}


def _flat(cells: NDArray[Any], rows: int) -> NDArray[Any]:
    """[row blocks, groups, 32 rows, n] to [rows, groups * n]."""
    blocks, groups, height, width = cells.shape
    return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(blocks * height, groups * width)[:rows]


def _grouped(values: NDArray[Any], group: int, cols: int) -> NDArray[Any]:
    """One number per group of columns; groups become smaller where `cols` is not a multiple of them."""
    size = gcd(cols, group)
    return np.repeat(values, group // size, axis=1)[:, : cols // size]
