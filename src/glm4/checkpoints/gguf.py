"""`GGUFSource`: the tensors and metadata of a GGUF file or a set of split files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.gguf_header import MAGIC, GGUFHeader, GGUFTensor, read_header
from glm4.checkpoints.gguf_quants import dequantize, read_codes
from glm4.checkpoints.tensor_source import Float32, MappedFile, TensorInfo
from glm4.errors import CheckpointError, GGUFError, TensorError
from glm4.kernels.group_codes import GroupCodes

MAX_SPLITS = 1024
MAX_PADDING = 1 << 16  # between the parts of a joined file; writers pad to 32 bytes
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)


class GGUFSource:
    """The tensors of a GGUF model.

    Args:
        path: a `.gguf` file; for a split model the first one (`…-00001-of-0000N.gguf`), whose siblings are then opened
            too.

    Attributes:
        metadata: the key-value pairs of the (first) file.

    Raises:
        GGUFError: a header contradicts its file, or a split set is inconsistent.
        CheckpointError: a file is missing or unreadable.
        UnsupportedModelError: big-endian file, old version, unknown tensor type.
    """

    def __init__(self, path: Path) -> None:
        self._files: list[MappedFile] = []
        self._tensors: dict[str, tuple[MappedFile, GGUFTensor]] = {}
        try:
            header = self._open_file(path)
            self.metadata = header.metadata
            _refuse_joined(self._files[0], header)
            for number, sibling in enumerate(split_siblings(path, self.metadata), start=1):
                metadata = self._open_file(sibling).metadata
                if metadata.get("split.no") != number or metadata.get("split.count") != self.metadata["split.count"]:
                    raise GGUFError(f"{sibling} is not part {number + 1} of the model that begins with {path.name}")
            self._check_split_total(path)
        except BaseException:
            self.close()
            raise

    def _open_file(self, path: Path) -> GGUFHeader:
        file = MappedFile(path)
        self._files.append(file)
        header = read_header(file)
        for name, tensor in header.tensors.items():
            if name in self._tensors:
                raise GGUFError(f"the tensor {name!r} is in both {self._tensors[name][0].path} and {path}")
            self._tensors[name] = (file, tensor)
        return header

    def _check_split_total(self, path: Path) -> None:
        total = self.metadata.get("split.tensors.count")
        if len(self._files) > 1 and total is not None and total != len(self._tensors):
            raise GGUFError(f"{path}: the parts hold {len(self._tensors)} tensors, the first part declares {total}")

    def names(self) -> Collection[str]:
        """Every tensor name."""
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        """Shape (out, in), ggml type and size of a tensor."""
        _, tensor = self._entry(name)
        return TensorInfo(tensor.shape, tensor.block_format.name, tensor.nbytes)

    def read(self, name: str) -> Float32:
        """The tensor dequantized to float32.

        Raises:
            TensorError: no such tensor.
        """
        file, tensor = self._entry(name)
        return _decode(file, tensor, tensor.offset, tensor.nbytes).reshape(tensor.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of the first axis, dequantized to float32; errors as `read`."""
        file, tensor = self._entry(name)
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise TensorError(f"{name!r} of shape {tensor.shape} has no rows {start}..{stop}")
        if len(tensor.shape) == 1:  # one block may hold several rows of a vector
            rows: Float32 = self.read(name)[start:stop].copy()
            return rows
        row_bytes = tensor.nbytes // tensor.shape[0]
        flat = _decode(file, tensor, tensor.offset + start * row_bytes, (stop - start) * row_bytes)
        return flat.reshape((stop - start, *tensor.shape[1:]))

    def has_codes(self, name: str) -> bool:
        """Whether a tensor is a matrix of 4-bit codes that `read_codes` can read; errors as `read`."""
        _, tensor = self._entry(name)
        return tensor.block_format.codes is not None and len(tensor.shape) == 2

    def read_codes(self, name: str, start: int, stop: int) -> GroupCodes:
        """Rows start..stop-1 of a matrix as the file's codes; errors as `read_rows`, or it has no codes."""
        file, tensor = self._entry(name)
        decode = tensor.block_format.codes
        if decode is None or len(tensor.shape) != 2:
            raise TensorError(f"{name!r} is {tensor.block_format.name}, which has no 4-bit codes")
        offset, nbytes = self._row_range(name, start, stop)
        codes = read_codes(file.bytes_at(offset, nbytes).view(tensor.block_format.block), decode, stop - start)
        file.release(offset, nbytes)
        return codes

    def read_blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows start..stop-1 of a matrix as they are in the file, uint8 [rows, bytes of a row]; errors as `read`."""
        file, _ = self._entry(name)
        offset, nbytes = self._row_range(name, start, stop)
        blocks: NDArray[np.uint8] = file.bytes_at(offset, nbytes).reshape(stop - start, -1).copy()
        file.release(offset, nbytes)
        return blocks

    def _row_range(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """(offset, bytes) of some rows of a matrix."""
        _, tensor = self._entry(name)
        if not 0 <= start < stop <= tensor.shape[0]:
            raise TensorError(f"{name!r} of shape {tensor.shape} has no rows {start}..{stop}")
        row_bytes = tensor.nbytes // tensor.shape[0]
        return tensor.offset + start * row_bytes, (stop - start) * row_bytes

    def _entry(self, name: str) -> tuple[MappedFile, GGUFTensor]:
        try:
            return self._tensors[name]
        except KeyError:
            raise TensorError(f"there is no tensor {name!r} in this checkpoint") from None

    def close(self) -> None:
        """Unmaps the files."""
        for file in self._files:
            file.close()


def _decode(file: MappedFile, tensor: GGUFTensor, offset: int, nbytes: int) -> Float32:
    """The weights in a byte range of whole blocks, as a flat float32 array."""
    out = np.empty(nbytes // tensor.block_format.nbytes * tensor.block_format.weights, np.float32)
    dequantize(file.bytes_at(offset, nbytes), tensor.block_format, out)
    file.release(offset, nbytes)
    return out


def _refuse_joined(file: MappedFile, header: GGUFHeader) -> None:
    """Recognize the parts of a split model written one after another into one file.

    Raises:
        GGUFError: a second part begins behind the first one's data.
    """
    behind = file.buffer()[header.end : header.end + MAX_PADDING]
    if header.metadata.get("split.count", 0) not in (0, 1) and MAGIC in behind:
        raise GGUFError(
            f"{file.path} is the parts of a split model joined as they are (with `cat`, say), which no program can "
            "read: each part has a header of its own. Keep the parts as separate files in one folder, named "
            "NAME-00001-of-0000N.gguf, and open the folder; or merge them: `llama-gguf-split --merge FIRST OUT.gguf`"
        )


def split_siblings(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """The other files of a split model, in order; empty for a model in one file.

    Raises:
        GGUFError: the file is not the first part, or its name does not follow the pattern of split models.
        CheckpointError: a sibling is missing.
    """
    count = metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= MAX_SPLITS:
        raise GGUFError(f"{path}: split.count is {count!r}")
    if count <= 1:
        return []
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise GGUFError(
            f"{path} is part of a model split into {count} files, but is not named …-00001-of-{count:05}.gguf"
        )
    if metadata.get("split.no") != 0 or int(match[2]) != 1:
        raise GGUFError(f"{path} is not the first part; open {match[1]}-00001-of-{count:05}.gguf")
    siblings = [path.with_name(f"{match[1]}-{part:05}-of-{count:05}.gguf") for part in range(2, count + 1)]
    for sibling in siblings:
        if not sibling.exists():
            raise CheckpointError(f"{sibling} is missing; the model is split into {count} files, fetch all of them")
    return siblings


def is_later_split(path: Path) -> bool:
    """True for part 2 and later of a split model, by the naming pattern that its first part must also follow."""
    match = _SPLIT_NAME.fullmatch(path.name)
    return match is not None and int(match[2]) > 1
