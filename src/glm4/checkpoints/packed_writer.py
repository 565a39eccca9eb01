"""Writes the weight file and the configuration of a packed checkpoint; `packed_format.py` describes the format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.packed_format import ALIGNMENT, CHECKSUMS, PackedInfo, checksum, packed_table, section_of
from glm4.checkpoints.tensor_source import TensorInfo
from glm4.checkpoints.vision_config import vision_settings
from glm4.model.config import ModelConfig
from glm4.model.precision import Precision

# Written in blocks of whole huge pages, always at multiples of their size: file systems with large folios then keep the
# file in huge pages, and the mapping is as fast as anonymous memory.
_BLOCK = 8 << 20
# Fields with the same name in ModelConfig and in config.json.
_SAME_NAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "partial_rotary_factor",
    "attention_bias", "tie_word_embeddings",
)  # fmt: skip


class PackedWriter:
    """Writes one packed weight file front to back, in bounded memory. A context manager.

    Tensors come in the order of `packed_shapes`, each in one or more pieces of whole 8-byte words.

    Attributes:
        nbytes: size of the finished file.
    """

    def __init__(self, path: Path, config: ModelConfig, precision: Precision) -> None:
        table = packed_table(config, precision)
        self.nbytes = _file_nbytes(table)
        self._left = [(name, info.nbytes) for name, info in table.items() if name != CHECKSUMS]
        self._left.reverse()
        self._sums: list[int] = []
        self._sum = self._written = 0
        self._digest = hashlib.sha256()
        self._block = bytearray(_BLOCK)
        self._filled = 0
        self._file = path.open("wb", buffering=0)
        self._put(memoryview(_header(table)))

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Append (a piece of) the packed bytes of a matrix, or a float32 vector.

        Raises:
            ValueError: another tensor is due, or the data is longer than the tensor.
        """
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        expected, size = self._left[-1]
        self._written += raw.size
        if name != expected or self._written > size:
            raise ValueError(f"{name!r}: {self._written} bytes, but {expected!r} of {size} bytes is due")
        self._sum = (self._sum + checksum(raw)) % (1 << 64)
        self._put(raw.data)
        if self._written == size:
            self._sums.append(self._sum)
            self._sum = self._written = 0
            self._left.pop()

    def _put(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            count = min(_BLOCK - self._filled, len(data) - start)
            self._block[self._filled : self._filled + count] = data[start : start + count]
            self._filled += count
            start += count
            if self._filled == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        block = memoryview(self._block)[: self._filled]
        self._digest.update(block)
        while block:  # a raw file may write less than it is given
            block = block[self._file.write(block) :]
        self._filled = 0

    def finish(self) -> tuple[int, str]:
        """Write the checksums and close. Returns (bytes, sha256 in hex).

        Raises:
            ValueError: tensors are missing.
        """
        if self._left:
            raise ValueError(f"{len(self._left)} tensors are missing, {self._left[-1][0]!r} first")
        self._put(np.array(self._sums, "<u8").view(np.uint8).data)
        self._flush()
        self._file.close()
        return self.nbytes, self._digest.hexdigest()

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def packed_file_nbytes(config: ModelConfig, precision: Precision) -> int:
    """Size of the weight file, before writing it."""
    return _file_nbytes(packed_table(config, precision))


def write_packed_config(folder: Path, config: ModelConfig, info: PackedInfo) -> None:
    """Write `config.json`: Hugging Face's keys of `glm` or `glm4`, and our `quantization_config`.

    Args:
        config: of the source; rotary rows were reordered while packing, so half-split is dropped.
    """
    values = asdict(config) | {"hidden_act": "silu"}
    settings = {
        "architectures": ["GlmForCausalLM" if config.architecture == "glm" else "Glm4ForCausalLM"],
        "model_type": config.architecture,
        **{key: values[key] for key in _SAME_NAME},
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        **({} if config.vision is None else vision_settings(config.vision)),
        "quantization_config": section_of(info, config),
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _file_nbytes(table: Mapping[str, TensorInfo]) -> int:
    return len(_header(table)) + sum(info.nbytes for info in table.values())


def _header(table: Mapping[str, TensorInfo]) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces so that the data begins 64-byte aligned.

    Packed matrices are multiples of 64 bytes and come first, so each of them is aligned too.
    """
    entries, at = {}, 0
    for name, info in table.items():
        offsets = [at, at + info.nbytes]
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
        at += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
