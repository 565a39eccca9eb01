"""Parser for GGUF headers: metadata and tensor table, every count and offset checked against the file's size.

Layout (versions 2 and 3, little-endian): "GGUF", version u32, tensor count u64, key count u64; the key-value pairs
(name, type u32, value); the tensor table (name, dimension count u32, dimensions u64 innermost first, type u32, offset
u64 from the start of the data); padding to the alignment; the data. Source: the format description in ggml-org/ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from glm4.checkpoints.gguf_quants import BLOCK_FORMATS, OTHER_TYPES, BlockFormat
from glm4.checkpoints.tensor_source import MappedFile
from glm4.errors import GGUFError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEYS = 65_536
MAX_TENSORS = 131_072
MAX_ARRAY_ITEMS = 4_000_000  # the largest vocabularies have a few hundred thousand merges
MAX_ALL_ITEMS = 16_000_000  # of all arrays together: a Python list takes more memory than the packed numbers
MAX_TEXT_BYTES = 1 << 26
MAX_ARRAY_DEPTH = 3
MAX_NAME_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_WEIGHTS = 1 << 48

# The fewest bytes one entry can take; a count above (bytes left / this) is invalid.
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """An entry of the tensor table, with its byte range verified to be inside the file.

    Attributes:
        name: as in the file, "blk.0.attn_q.weight".
        shape: outermost first, (out, in) for a matrix.
        block_format: how its data is packed.
        offset: of its first byte, from the start of the file.
        nbytes: of its data.
    """

    name: str
    shape: tuple[int, ...]
    block_format: BlockFormat
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """Everything before the data of one GGUF file."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    end: int  # offset behind the last tensor's data, from the start of the file


def read_header(file: MappedFile) -> GGUFHeader:
    """Parses and checks the header of a mapped file.

    Raises:
        GGUFError: malformed, truncated or inconsistent header.
        UnsupportedModelError: big-endian file, old version, or a tensor type we do not decode.
    """
    parser = _Parser(file)
    try:
        return parser.header()
    except struct.error:  # a fixed-size field runs past the end of the file
        raise parser.truncated() from None


def read_metadata(file: MappedFile) -> dict[str, Any]:
    """The key-value pairs of a mapped file alone, whatever its tensors are; errors as `read_header`."""
    parser = _Parser(file)
    try:
        return parser.metadata()[0]
    except struct.error:
        raise parser.truncated() from None


class _Parser:
    """A cursor over the mapped bytes."""

    def __init__(self, file: MappedFile) -> None:
        self._path = file.path
        self._bytes = file.buffer()
        self._size = file.size
        self._at = 0
        self._items = 0

    def truncated(self) -> GGUFError:
        return GGUFError(
            f"{self._path} ends inside its header (at byte {self._at} of {self._size}); "
            "it is truncated or damaged, fetch it again"
        )

    def header(self) -> GGUFHeader:
        metadata, tensor_count = self.metadata()
        entries, alignment = self._tensor_table(tensor_count), self._alignment(metadata)
        start = -(-self._at // alignment) * alignment
        tensors = self._place(entries, alignment, start)
        return GGUFHeader(metadata, tensors, max([start, *(t.offset + t.nbytes for t in tensors.values())]))

    def metadata(self) -> tuple[dict[str, Any], int]:
        """The key-value pairs, and the number of tensors that the file claims."""
        tensor_count, key_count = self._preamble()
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string(MAX_NAME_BYTES)
            if key in metadata:
                raise GGUFError(f"{self._path}: the metadata key {key!r} appears twice")
            metadata[key] = self._value(self._number("<I"), key)
        return metadata, tensor_count

    def _preamble(self) -> tuple[int, int]:
        """Checks magic and version; returns (tensor count, key count), each possible for a file of this size."""
        if self._bytes[:4] != MAGIC:
            raise GGUFError(f"{self._path} is not a GGUF file (it does not begin with 'GGUF')")
        self._at = 4
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError(f"{self._path} is a big-endian GGUF file; only little-endian ones can be read")
        if version not in VERSIONS:
            raise UnsupportedModelError(f"{self._path} is GGUF version {version}; versions 2 and 3 can be read")
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        self._check_count("tensors", tensor_count, _MIN_TENSOR_BYTES, MAX_TENSORS)
        self._check_count("metadata keys", key_count, _MIN_KEY_BYTES, MAX_KEYS)
        return tensor_count, key_count

    def _check_count(self, what: str, count: int, min_bytes: int, limit: int) -> None:
        if count > limit or count * min_bytes > self._size - self._at:
            raise GGUFError(
                f"{self._path} claims {count} {what}; a file of {self._size} bytes has room for "
                f"{min(limit, (self._size - self._at) // min_bytes)}"
            )

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._bytes, self._at)
        self._at += struct.calcsize(code)
        return value

    def _string(self, limit: int = MAX_TEXT_BYTES) -> str:
        length = self._number("<Q")
        if length > self._size - self._at:
            raise self.truncated()
        if length > limit:
            raise GGUFError(f"{self._path}: a text of {length} bytes at byte {self._at}; at most {limit} are allowed")
        start, self._at = self._at, self._at + length
        try:
            return self._bytes[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise GGUFError(f"{self._path}: the text at byte {start} is not valid UTF-8") from None

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        if kind not in _SCALARS:
            raise GGUFError(f"{self._path}: the metadata key {key!r} has the unknown value type {kind}")
        value = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > MAX_ARRAY_DEPTH:
            raise GGUFError(f"{self._path}: the metadata key {key!r} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind, count = self._number("<I"), self._number("<Q")
        code = _SCALARS.get(kind)
        min_bytes = struct.calcsize(code) if code else 12 if kind == _ARRAY else 8
        self._check_count(f"items in {key!r}", count, min_bytes, min(MAX_ARRAY_ITEMS, MAX_ALL_ITEMS - self._items))
        self._items += count
        if code:
            start, self._at = self._at, self._at + count * min_bytes
            numbers = np.frombuffer(self._bytes[start : self._at], code)
            values: list[Any] = (numbers != 0 if kind == _BOOL else numbers).tolist()
            return values
        if kind == _STRING:
            return self._strings(count)
        return [self._value(kind, key, depth) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """A string array. A vocabulary has 300,000 strings, so the loop keeps everything in local names."""
        data, at, size = self._bytes, self._at, self._size
        length_at: Callable[..., tuple[Any, ...]] = struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                start = at + 8
                end = start + length_at(data, at)[0]
                if end > size:
                    raise self.truncated()
                found.append(data[start:end].decode("utf-8"))
                at = end
        except UnicodeDecodeError:
            raise GGUFError(f"{self._path}: the text at byte {at + 8} is not valid UTF-8") from None
        self._at = at
        return found

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise GGUFError(f"{self._path}: general.alignment is {alignment!r}, which is not a power of two")
        return alignment

    def _tensor_table(self, count: int) -> list[tuple[str, tuple[int, ...], BlockFormat, int]]:
        """(name, shape, format, offset from the start of the data) of every tensor."""
        entries = []
        seen: set[str] = set()
        for _ in range(count):
            name = self._string(MAX_NAME_BYTES)
            if name in seen:
                raise GGUFError(f"{self._path}: the tensor {name!r} appears twice")
            seen.add(name)
            dimensions = self._number("<I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise GGUFError(f"{self._path}: {name!r} has {dimensions} dimensions")
            sizes = tuple(self._number("<Q") for _ in range(dimensions))
            kind, offset = self._number("<I"), self._number("<Q")
            entries.append((name, sizes[::-1], self._block_format(name, kind, sizes), offset))
        return entries

    def _block_format(self, name: str, kind: int, sizes: tuple[int, ...]) -> BlockFormat:
        if kind not in BLOCK_FORMATS:
            raise UnsupportedModelError(
                f"{self._path}: {name!r} is packed as {OTHER_TYPES.get(kind, f'type {kind}')}, which is not supported; "
                f"supported are {', '.join(row.name for row in BLOCK_FORMATS.values())}"
            )
        weights = 1
        for size in sizes:
            weights *= size
        if not 1 <= weights <= MAX_WEIGHTS:
            raise GGUFError(f"{self._path}: {name!r} has the impossible dimensions {list(sizes)}")
        block_format = BLOCK_FORMATS[kind]
        if sizes[0] % block_format.weights:
            raise GGUFError(
                f"{self._path}: {name!r} has rows of {sizes[0]} weights, which {block_format.name} "
                f"cannot pack (blocks of {block_format.weights})"
            )
        return block_format

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], BlockFormat, int]], alignment: int, data_start: int
    ) -> dict[str, GGUFTensor]:
        """Turns offsets into file positions; refuses ranges that leave the file, overlap or are misaligned."""
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, block_format, offset in entries:
            weights = 1
            for size in shape:
                weights *= size
            nbytes = weights // block_format.weights * block_format.nbytes
            if offset % alignment:
                raise GGUFError(f"{self._path}: {name!r} begins at {offset}, not a multiple of {alignment}")
            if data_start + offset + nbytes > self._size:
                raise GGUFError(
                    f"{self._path}: {name!r} ends {data_start + offset + nbytes - self._size} bytes past the end "
                    "of the file; the file is truncated or damaged, fetch it again"
                )
            tensors[name] = GGUFTensor(name, shape, block_format, data_start + offset, nbytes)
        position, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < position:
                raise GGUFError(f"{self._path}: the tensors {before!r} and {tensor.name!r} overlap")
            position, before = tensor.offset + tensor.nbytes, tensor.name
        return tensors
