"""Reader for safetensors files and sharded safetensors folders.

Our own, over a memory map, because NumPy has no bfloat16 and because a header is untrusted until checked.
Layout of a file: 8 bytes little-endian header length, a JSON object `name -> {dtype, shape, data_offsets}` (plus an
optional `__metadata__`), then the data. Source: the format description in huggingface/safetensors.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from glm4.checkpoints.json_file import parse_json_object, read_json_object
from glm4.checkpoints.tensor_source import Float32, MappedFile, TensorInfo
from glm4.errors import CheckpointError, TensorError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_SHARDS = 4096
MAX_DIMENSIONS = 8

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_READABLE = ("F32", "F16", "BF16")
# A shard is a plain file name inside the folder: no separator, no leading dot, no way to escape the folder.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Location:
    """A tensor's location: the file, the offset of its first byte, and its header entry."""

    file: MappedFile
    offset: int
    info: TensorInfo


class SafetensorsSource:
    """The tensors of one safetensors file, or of the shards listed in an index.

    Args:
        path: a `.safetensors` file, or a folder with `model.safetensors` or `model.safetensors.index.json`.

    Raises:
        CheckpointError: no such file, malformed index, missing shard.
        TensorError: a header contradicts its file.
    """

    def __init__(self, path: Path) -> None:
        self._files: list[MappedFile] = []
        self._tensors: dict[str, Location] = {}
        try:
            if path.is_dir():
                self._open_folder(path)
            else:
                self._open_file(path)
        except BaseException:
            self.close()
            raise

    def _open_folder(self, folder: Path) -> None:
        index = folder / INDEX_FILE
        if not index.exists():
            self._open_file(folder / SINGLE_FILE)
            return
        weight_map = _read_weight_map(index)
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).exists():
                raise CheckpointError(
                    f"{folder / shard} is missing, though {INDEX_FILE} names it; fetch the model again"
                )
            self._open_file(folder / shard)
        for name, shard in weight_map.items():
            location = self._tensors.get(name)
            if location is None or location.file.path.name != shard:
                raise TensorError(f"{index} places {name!r} in {shard}, which does not have it")

    def _open_file(self, path: Path) -> None:
        file = MappedFile(path)
        self._files.append(file)
        for name, location in read_header(file).items():
            if name in self._tensors:
                raise TensorError(f"{name!r} is in both {self._tensors[name].file.path} and {path}")
            self._tensors[name] = location

    def names(self) -> Collection[str]:
        """Every tensor name."""
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and size of a tensor."""
        return self._location(name).info

    def read(self, name: str) -> Float32:
        """The tensor as float32.

        Raises:
            TensorError: no such tensor.
            UnsupportedModelError: its dtype is not F32, F16 or BF16.
        """
        shape = self.info(name).shape
        return self._read(name, 0, shape[0] if shape else 1).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 as float32; errors as `read`."""
        shape = self.info(name).shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise TensorError(f"{name!r} of shape {shape} has no rows {start}..{stop}")
        return self._read(name, start, stop).reshape((stop - start, *shape[1:]))

    def _read(self, name: str, start: int, stop: int) -> Float32:
        location = self._location(name)
        shape, dtype = location.info.shape, location.info.dtype
        if dtype not in _READABLE:
            raise UnsupportedModelError(
                f"tensor {name!r} is {dtype}; safetensors weights may be {', '.join(_READABLE)}"
            )
        row_bytes = location.info.nbytes // shape[0] if shape and shape[0] else location.info.nbytes
        offset, nbytes = location.offset + start * row_bytes, (stop - start) * row_bytes
        raw = location.file.bytes_at(offset, nbytes)
        out = np.empty(nbytes // _WIDTH[dtype], np.float32)
        if dtype == "BF16":  # bfloat16 is the upper half of a float32
            np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
        else:
            out[...] = raw.view("<f4" if dtype == "F32" else "<f2")
        del raw
        location.file.release(offset, nbytes)
        return out

    def _location(self, name: str) -> Location:
        try:
            return self._tensors[name]
        except KeyError:
            raise TensorError(f"there is no tensor {name!r} in this checkpoint") from None

    def close(self) -> None:
        """Unmaps the files."""
        for file in self._files:
            file.close()


def _read_weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json_object(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise CheckpointError(f"{index} places {name!r} in {shard!r}, which is not a plain .safetensors file name")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise CheckpointError(f"{index} names more than {MAX_SHARDS} shards")
    return MappingProxyType(weight_map)


def read_header(file: MappedFile) -> dict[str, Location]:
    """Every tensor of a file, with its byte range verified to be inside the file and not to overlap another."""
    if file.size < 8:
        raise TensorError(f"{file.path} has {file.size} bytes, too few for a safetensors header; fetch it again")
    (length,) = struct.unpack_from("<Q", file.buffer(), 0)
    if length > MAX_HEADER_BYTES or 8 + length > file.size:
        raise TensorError(
            f"{file.path} claims a header of {length} bytes and has {file.size}; it is truncated or not safetensors"
        )
    header = parse_json_object(file.buffer()[8 : 8 + length], f"the header of {file.path}")
    header.pop("__metadata__", None)
    data_start, data_size = 8 + length, file.size - 8 - length
    found: list[tuple[int, int, str, TensorInfo]] = []
    for name, entry in header.items():
        begin, end, info = _parse_entry(file.path, name, entry)
        if end > data_size:
            raise TensorError(f"{name!r} ends {end - data_size} bytes past the end of {file.path}; fetch it again")
        found.append((begin, end, name, info))
    found.sort(key=lambda item: item[:2])
    position = 0
    for begin, end, name, _ in found:
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise TensorError(f"{name!r} {fault} in {file.path}")
        position = end
    if position != data_size:
        raise TensorError(f"{file.path} has {data_size - position} bytes no tensor owns")
    return {name: Location(file, data_start + begin, info) for begin, _, name, info in found}


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    if not isinstance(entry, dict):
        raise TensorError(f"{path}: the header entry of {name!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _WIDTH:
        raise UnsupportedModelError(f"{path}: {name!r} has the unknown dtype {dtype!r}")
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise TensorError(f"{path}: the shape of {name!r} is not a list of at most {MAX_DIMENSIONS} sizes")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise TensorError(f"{path}: the data_offsets of {name!r} are not a pair of ascending byte offsets")
    nbytes = _WIDTH[dtype]
    for size in shape:
        nbytes *= size
    if nbytes != offsets[1] - offsets[0]:
        raise TensorError(f"{path}: {name!r} is {dtype} {shape}, {nbytes} bytes, but owns {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1], TensorInfo(tuple(shape), dtype, nbytes)


def _counts(value: Any) -> list[int] | None:
    """The value if it is a list of integers of at least 0, each small enough to be a size."""
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value):
        return value
    return None
