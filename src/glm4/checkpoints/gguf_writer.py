"""Writes GGUF files (version 3, little-endian): the header of `gguf_header.py`, then the tensors as they are made."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.gguf_header import DEFAULT_ALIGNMENT, MAGIC

VERSION = 3
# A whole number is a uint32 unless it says otherwise, a fraction a float32; a list is of texts or of int32 numbers.
Value = bool | int | float | str | np.uint16 | np.int32 | Sequence[str] | Sequence[int]
_NOTHING = np.empty(0, np.uint8)
_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name: in the file.
        shape: outermost first, (out, in) for a matrix.
        number: ggml's number of its type.
        nbytes: of its data.
    """

    name: str
    shape: tuple[int, ...]
    number: int
    nbytes: int


def header_bytes(metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor]) -> bytes:
    """Everything before the data, padded to the alignment."""
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header.append(_text(tensor.name) + dimensions + struct.pack("<IQ", tensor.number, offset))
        offset += _padded(tensor.nbytes)
    data = b"".join(header)
    return data + bytes(_padded(len(data)) - len(data))


def file_nbytes(header: bytes, tensors: Iterable[PlannedTensor]) -> int:
    """Size of the whole file."""
    return len(header) + sum(_padded(tensor.nbytes) for tensor in tensors)


def write_tensors(
    file: BinaryIO, tensors: Sequence[PlannedTensor], parts: Iterable[tuple[str, NDArray[np.uint8]]]
) -> None:
    """Write the data behind a header.

    Args:
        parts: (tensor's name, its next bytes), tensors in the order of the header. What follows is left in an iterator.

    Raises:
        ValueError: the parts are not what the header announces.
    """
    coming = iter(parts)
    for tensor in tensors:
        left = tensor.nbytes
        while left:
            name, data = next(coming, ("nothing", _NOTHING))
            if name != tensor.name or data.nbytes > left:
                raise ValueError(f"{data.nbytes} bytes of {name!r} where {left} of {tensor.name!r} belong")
            file.write(data.data)
            left -= data.nbytes
        file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT))


def _padded(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A value's type and its bytes."""
    if isinstance(value, np.uint16):
        return struct.pack("<IH", _UINT16, int(value))
    if isinstance(value, np.int32):
        return struct.pack("<Ii", _INT32, int(value))
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    texts = [item for item in value if isinstance(item, str)]
    if texts:
        return struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(map(_text, texts))
    return struct.pack("<IIQ", _ARRAY, _INT32, len(value)) + np.array(value, "<i4").tobytes()
