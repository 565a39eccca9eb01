"""Writes safetensors files and sharded safetensors folders, a slab of rows at a time; `safetensors.py` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.safetensors import INDEX_FILE, SINGLE_FILE

WIDTHS: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_ALIGNMENT = 8  # of the data's beginning, as the reference implementation writes it


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written; `dtype` is a key of `WIDTHS`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file to be written: its name, its tensors in order, and everything before their data."""

    file: str
    tensors: tuple[PlannedTensor, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(tensors: Iterable[PlannedTensor], most: int) -> list[Shard]:
    """Divide tensors, in order, among files with at most `most` bytes of data; a larger tensor has its own file.

    A single file is named as one without an index is.
    """
    groups: list[list[PlannedTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if groups[-1] and held + tensor.nbytes > most:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += tensor.nbytes
    count = len(groups)
    names = [SINGLE_FILE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return [Shard(name, tuple(group), _header(group)) for name, group in zip(names, groups, strict=True)]


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    at = 0
    for tensor in tensors:
        offsets = [at, at + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_shards(folder: Path, shards: Sequence[Shard], parts: Iterator[tuple[str, NDArray[np.uint8]]]) -> None:
    """Write the files, and the index if there are several.

    Args:
        folder: must exist.
        parts: (tensor's name, its next bytes), tensors in the order of the shards.

    Raises:
        ValueError: the parts are not what the shards announce.
        OSError: as the file system says.
    """
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors:
                left = tensor.nbytes
                while left:
                    name, data = next(parts, ("", np.empty(0, np.uint8)))
                    if name != tensor.name or not 0 < data.nbytes <= left:
                        raise ValueError(f"{data.nbytes} bytes of {name!r} where {left} of {tensor.name!r} belong")
                    file.write(data.data)
                    left -= data.nbytes
    if next(parts, None) is not None:
        raise ValueError("there is more data than the shards have tensors for")
    if len(shards) > 1:
        index = index_of(shards)
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """The contents of `model.safetensors.index.json`."""
    size = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    places = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
