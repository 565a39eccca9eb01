"""Packed checkpoints: weights on disk, byte for byte as the kernels read them.

A folder with `config.json`, one `model.safetensors` and the tokenizer's files. The configuration has Hugging Face's
keys for `glm` or `glm4` and a `quantization_config` of our own (`quant_method` "glm4_packed"), so that other programs
refuse the folder instead of misreading it. The weight file contains:

    matrices    U8 [packed bytes], canonical names, model order; layout: `kernels.formats`; each 64-byte aligned
    vectors     F32, after the matrices
    checksums   U64, one `checksum` per tensor in that order; written last

The tensors are those in the table of `model/tensors.py`, with its extras if the section has their keys. The section
also gives the formats of the layers' matrices and of the tables, and for dtype "stored", by name, which matrices are
exceptions.

Three checks, from cheap to thorough: the header is compared with the configuration whenever the folder is opened;
`PackedSource.weight` and `.vector` compare the checksum, which reads the data once (at memory speed, and it brings in
the pages that the first forward pass needs anyway); `verify_sha256` compares the whole file with the digest in
`config.json`, which takes seconds for 6 GB, so only on request (`glm4 info --verify`).

Does not cover: deliberate damage. Anyone who can change the weights can change the digest too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.safetensors import SINGLE_FILE, Location, read_header
from glm4.checkpoints.tensor_source import Float32, MappedFile, TensorInfo
from glm4.errors import CheckpointError, TensorError, UnsupportedModelError
from glm4.kernels.formats import FORMATS, ROW_BLOCK, PackedWeight, packed_nbytes
from glm4.model.config import ModelConfig
from glm4.model.precision import PRECISIONS, STORED, Precision, stored_precision, tensor_nbytes
from glm4.model.tensors import EXTRAS, NO_EXTRAS, Extras, model_tensors, row_of

QUANT_METHOD = "glm4_packed"
# Raise this when the meaning of the bytes changes: the container, or the layout of any format in kernels.formats.
FORMAT_VERSION = 2
ALIGNMENT = 64
CHECKSUMS = "checksums"

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHUNK = 4 << 20

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class PackedInfo:
    """The `quantization_config` of a packed checkpoint, checked.

    Attributes:
        precision: formats of the matrices, a row of `PRECISIONS` or "stored"; and the extras.
        nbytes, sha256: of the weight file.
        variant: name of the row of variants.py the source belonged to.
        model_type: the source's own ("chatglm", "qwen2" …), which determines the dialect.
        source: what it was made from, for the user.
    """

    precision: Precision
    nbytes: int
    sha256: str
    variant: str
    model_type: str
    source: str


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a packed checkpoint (of any version)."""
    section = config.get("quantization_config")
    return isinstance(section, dict) and section.get("quant_method") == QUANT_METHOD


def section_of(info: PackedInfo, model: ModelConfig) -> dict[str, Any]:
    """The `quantization_config` to write."""
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "precision": _precision_of(info.precision),
        "formats": _geometry(info.precision, model),
        "weights": {"file": SINGLE_FILE, "nbytes": info.nbytes, "sha256": info.sha256},
        "variant": info.variant,
        "source_model_type": info.model_type,
        "source": info.source,
        # Only where present: builds that do not know them can read a folder without them.
        **{key: value for key, value in info.precision.extras.items() if value},
    }


def _geometry(precision: Precision, model: ModelConfig) -> dict[str, dict[str, int]]:
    """Block sizes of the formats of a model's matrices, as `config.json` records them."""
    rows = [FORMATS[name] for name in precision.formats(model)]
    keys = ("row_block", "col_group", "cell_nbytes")
    return {row.name: {key: getattr(row, key) for key in keys} for row in rows}


def _precision_of(precision: Precision) -> dict[str, Any]:
    usual = {"name": precision.name, "linear": precision.linear, "embedding": precision.embedding}
    return usual | ({"exceptions": dict(precision.exceptions)} if precision.exceptions else {})


def _parse_precision(wanted: object, extras: Extras) -> Precision | None:
    """The precision that `_precision_of` wrote; None if this build does not have it."""
    name = wanted.get("name") if isinstance(wanted, dict) else None
    if not isinstance(wanted, dict) or not isinstance(name, str):
        return None
    precision = PRECISIONS.get(name)
    if name == STORED:
        exceptions = wanted.get("exceptions")
        precision = stored_precision(exceptions) if isinstance(exceptions, dict) else None
    known = precision is not None and wanted == _precision_of(precision)
    return replace(precision, extras=extras) if precision is not None and known else None


def parse_section(config: Mapping[str, Any], where: str) -> PackedInfo:
    """Reads and checks the `quantization_config` of a packed checkpoint.

    Raises:
        UnsupportedModelError: another version of the format, or a precision this build does not have.
        CheckpointError: a key is missing or has an invalid value.
    """
    section: Mapping[str, Any] = config["quantization_config"]
    version = section.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise UnsupportedModelError(
            f"{where}: packed checkpoint of format version {version!r:.40}; this build reads version {FORMAT_VERSION}. "
            "Recreate it with `glm4 quantize` from the original model"
        )
    extras = _parse_extras(section, where)
    wanted = section.get("precision")
    precision = _parse_precision(wanted, extras)
    if precision is None:
        raise _other_formats(where, wanted)
    weights = section.get("weights")
    nbytes, digest = (weights.get("nbytes"), weights.get("sha256")) if isinstance(weights, dict) else (None, None)
    if type(nbytes) is not int or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CheckpointError(f"{where}: quantization_config lacks the size and sha256 of {SINGLE_FILE}")
    texts = [section.get(key) for key in ("variant", "source_model_type", "source")]
    variant, model_type, source = (text if isinstance(text, str) and len(text) <= 1000 else "" for text in texts)
    return PackedInfo(precision, nbytes, digest, variant, model_type, source)


def check_formats(config: Mapping[str, Any], precision: Precision, model: ModelConfig, where: str) -> None:
    """Check that the formats of a packed checkpoint have the same layout in this build.

    Raises:
        UnsupportedModelError: they do not.
    """
    section: Mapping[str, Any] = config["quantization_config"]
    if section.get("formats") != _geometry(precision, model):
        raise _other_formats(where, section.get("precision"))


def _other_formats(where: str, wanted: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: packed with weight formats this build does not have ({wanted!r:.120}); "
        "recreate it with `glm4 quantize` from the original model"
    )


def _parse_extras(section: Mapping[str, Any], where: str) -> Extras:
    values = {key: section.get(key, extra.type()) for key, extra in EXTRAS.items()}
    for key, value in values.items():
        if not EXTRAS[key].is_valid(value):
            raise CheckpointError(f"{where}: {key} must be {EXTRAS[key].must_be}, not {value!r:.40}")
    return MappingProxyType({key: value for key, value in values.items() if value})


def packed_shapes(config: ModelConfig, extras: Extras = NO_EXTRAS) -> dict[str, tuple[int, ...]]:
    """Canonical tensors and their shapes in file order: matrices in model order, then vectors."""
    tensors = model_tensors(config, extras).values()
    return {tensor.name: tensor.shape for rank in (2, 1) for tensor in tensors if len(tensor.shape) == rank}


def packed_table(config: ModelConfig, precision: Precision) -> dict[str, TensorInfo]:
    """The contents of the weight file, in file order."""
    tensors = model_tensors(config, precision.extras)
    table = {}
    for name, shape in packed_shapes(config, precision.extras).items():
        nbytes = tensor_nbytes(tensors[name], precision)
        table[name] = TensorInfo(shape, "F32", nbytes) if len(shape) == 1 else TensorInfo((nbytes,), "U8", nbytes)
    return {**table, CHECKSUMS: TensorInfo((len(table),), "U64", 8 * len(table))}


def checksum(data: Bytes) -> int:
    """Sum of the little-endian 64-bit words, modulo 2**64; bytes after the last whole word count as one more."""
    whole = data.size // 8 * 8
    total = int(np.add.reduce(data[:whole].view("<u8"), dtype=np.uint64)) if whole else 0
    return (total + int.from_bytes(data[whole:].tobytes(), "little")) % (1 << 64)


class PackedSource:
    """The tensors of a packed weight file, mapped read-only; also a `TensorSource` under canonical names.

    Args:
        path: the weight file.
        config: shape of the model.
        info: the contents of its `config.json`.

    Raises:
        CheckpointError, TensorError: the file is unreadable, truncated, or not as the configuration describes.
    """

    def __init__(self, path: Path, config: ModelConfig, info: PackedInfo) -> None:
        self.precision = info.precision
        self._shapes = packed_shapes(config, info.precision.extras)
        self._info = info
        self._config = config
        strangers = sorted(name for name in info.precision.exceptions if len(self._shapes.get(name, ())) != 2)
        if strangers:
            raise TensorError(
                f"{path.parent}: config.json gives formats for names that are not matrices: {strangers[:5]!r:.200}"
            )
        self._file = MappedFile(path)
        try:
            if self._file.size != info.nbytes:
                raise TensorError(
                    f"{path} has {self._file.size} bytes, config.json says {info.nbytes}; it is truncated or belongs "
                    "to another checkpoint"
                )
            self._tensors = read_header(self._file)
            self._check_table(packed_table(config, info.precision))
            sums = self._raw(CHECKSUMS).view("<u8").tolist()
        except BaseException:
            self.close()
            raise
        self._sums = dict(zip(self._shapes, sums, strict=True))

    def _check_table(self, expected: Mapping[str, TensorInfo]) -> None:
        path, found = self._file.path, self._tensors
        if found.keys() != expected.keys():
            wrong = sorted(found.keys() ^ expected.keys())[:5]
            raise TensorError(f"{path} does not hold exactly the tensors config.json describes: {wrong}")
        for name, wanted in expected.items():
            info, offset = found[name].info, found[name].offset
            if (info.dtype, info.shape) != (wanted.dtype, wanted.shape):
                raise TensorError(
                    f"{path}: {name!r} is {info.dtype} {info.shape}, the configuration needs {wanted.dtype} "
                    f"{wanted.shape}"
                )
            if info.dtype == "U8" and offset % ALIGNMENT:
                raise TensorError(f"{path}: {name!r} begins at byte {offset}, which is not a multiple of {ALIGNMENT}")

    def _format(self, name: str) -> str:
        return self.precision.format_of(name)

    def _raw(self, name: str) -> Bytes:
        location = self._location(name)
        return self._file.bytes_at(location.offset, location.info.nbytes)

    def _location(self, name: str) -> Location:
        try:
            return self._tensors[name]
        except KeyError:
            raise TensorError(f"there is no tensor {name!r} in this checkpoint") from None

    def _checked(self, name: str) -> Bytes:
        raw = self._raw(name)
        if checksum(raw) != self._sums[name]:
            raise TensorError(f"{self._file.path} is damaged: the checksum of {name!r} is wrong; recreate the file")
        return raw

    def weight(self, name: str) -> PackedWeight:
        """A matrix as the kernels read it: a read-only view of the mapping, valid even after `close`.

        Raises:
            TensorError: no such matrix, or its bytes are damaged.
        """
        self._location(name)
        rows, cols = self._shapes[name]
        return PackedWeight(self._checked(name), self._format(name), rows, cols)

    def vector(self, name: str) -> Float32:
        """A vector, copied.

        Raises:
            TensorError: as `weight`; or the values violate the table's check.
        """
        self._location(name)
        values: Float32 = self._checked(name).view("<f4").astype(np.float32)
        check = row_of(name).check
        if check is not None and not check.holds(values, self._config):
            raise TensorError(f"{self._file.path}: {name!r} must be {check.must_be}; recreate the file")
        return values

    def release(self, name: str) -> None:
        """Return a tensor's pages to the file cache until they are read again."""
        location = self._location(name)
        self._file.release(location.offset, location.info.nbytes)

    def prefer_huge_pages(self) -> None:
        """Ask the system to use huge pages for the file; call before reading the first tensor."""
        self._file.prefer_huge_pages()

    def verify_sha256(self, progress: Callable[[str, float, float], None] | None = None) -> None:
        """Compare the whole weight file with the digest in `config.json`; takes seconds for 6 GB.

        Raises:
            CheckpointError: they differ.
        """
        digest = hashlib.sha256()
        for start in range(0, self._file.size, _CHUNK):
            size = min(_CHUNK, self._file.size - start)
            digest.update(self._file.bytes_at(start, size).data)
            if progress is not None:
                progress("verifying", start + size, self._file.size)
        if digest.hexdigest() != self._info.sha256:
            raise CheckpointError(f"{self._file.path} is damaged: its sha256 is not the one in config.json")

    # TensorSource

    def names(self) -> Collection[str]:
        """Every canonical tensor."""
        return self._shapes.keys()

    def info(self, name: str) -> TensorInfo:
        """Shape, weight format and packed size of a tensor."""
        nbytes, shape = self._location(name).info.nbytes, self._shapes[name]
        return TensorInfo(shape, "F32" if len(shape) == 1 else self._format(name), nbytes)

    def read(self, name: str) -> Float32:
        """The tensor dequantized to float32."""
        return self.read_rows(name, 0, self.info(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1, dequantized; for a matrix, only the row blocks that contain them are unpacked."""
        shape = self.info(name).shape
        if not 0 <= start <= stop <= shape[0]:
            raise TensorError(f"{name!r} of shape {shape} has no rows {start}..{stop}")
        if len(shape) == 1:
            vector: Float32 = self.vector(name)[start:stop].copy()
            return vector
        from glm4.kernels import get_kernels

        if start == stop:
            return np.empty((0, shape[1]), np.float32)
        part, first = self.row_blocks(name, start, stop)
        values: Float32 = get_kernels().unpack(part)[start - first : stop - first]
        return np.ascontiguousarray(values)

    def row_blocks(self, name: str, start: int, stop: int) -> tuple[PackedWeight, int]:
        """The part of a matrix whose row blocks contain rows start..stop-1, and the first row of it."""
        rows, cols = self._shapes[name]
        first, last = start // ROW_BLOCK, -(-stop // ROW_BLOCK)
        block = packed_nbytes(self._format(name), ROW_BLOCK, cols)
        count = min(last * ROW_BLOCK, rows) - first * ROW_BLOCK
        data = self._raw(name)[first * block : last * block]
        return PackedWeight(data, self._format(name), count, cols), first * ROW_BLOCK

    def close(self) -> None:
        """Unmap the file once none of its weights is in use."""
        self._file.close()
