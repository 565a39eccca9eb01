"""`export_hf`, `export_chatglm`: a checkpoint as a safetensors folder in one of GLM-4's two layouts.

`--to hf` is what `GlmForCausalLM` and its like load without code from the checkpoint; `--to chatglm` is how GLM-4-9B
was first published, and GLM-4V-9B only. Numbers of the type that is written are copied exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.chatglm_layout import chatglm_config, chatglm_tensors
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.gguf_encoders import ENCODINGS, quantize
from glm4.checkpoints.hf_layout import HfTensor, hf_config, hf_tensors, read_hf_rows, text_class
from glm4.checkpoints.safetensors_writer import PlannedTensor, Shard, plan_shards, write_shards
from glm4.errors import CheckpointError, InvalidRequestError
from glm4.export.output_path import check_folder
from glm4.export.targets import ExportReport, ExportRequest, Progress
from glm4.export.text_side import write_chatglm_text, write_hf_text
from glm4.loading.packed_folder import LEGAL_FILES
from glm4.model.tensors import num_parameters
from glm4.requests.processor import Processor
from glm4.system.atomic_folder import atomic_folder
from glm4.system.disk_space import check_space

SHARD_BYTES = 5_000_000_000
SLAB_NBYTES = 32 << 20
_TEXT_NBYTES = 32 << 20  # about what the vocabulary takes
_WRITTEN = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "chat_template.jinja", "model*.safetensors", "model.safetensors.index.json", *LEGAL_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class _NumberFormat:
    """A type of the written numbers: its name in files, in torch, and among the encoders; its greatest number."""

    stored: str
    torch: str
    encoder: str
    largest: float


_FORMATS: Mapping[str, _NumberFormat] = MappingProxyType(
    {
        "bf16": _NumberFormat("BF16", "bfloat16", "bf16", 3.3895e38),
        "fp32": _NumberFormat("F32", "float32", "f32", 3.4028235e38),
        "fp16": _NumberFormat("F16", "float16", "f16", 65504),
    }
)


@dataclass(frozen=True)
class _Layout:
    """What differs between the two.

    Attributes:
        tensors: in the order of the files.
        read: rows of one of them, as float32.
        config: the contents of `config.json`.
        write_text: fills the folder with everything but weights and configuration.
        notes: for the user.
    """

    tensors: Callable[[Checkpoint], Iterator[HfTensor]]
    read: Callable[[Checkpoint, HfTensor, int, int], NDArray[np.float32]]
    config: Callable[[Checkpoint, str], dict[str, Any]]
    write_text: Callable[[Path, Checkpoint, Processor], None]
    notes: tuple[str, ...] = ()


def _read_chatglm(checkpoint: Checkpoint, tensor: HfTensor, start: int, stop: int) -> NDArray[np.float32]:
    return checkpoint.load_rows(tensor.canonical, start, stop)


_HF = _Layout(hf_tensors, read_hf_rows, hf_config, write_hf_text)
_CHATGLM = _Layout(
    chatglm_tensors,
    _read_chatglm,
    chatglm_config,
    write_chatglm_text,
    (
        "the original's Python files (modeling_chatglm.py, tokenization_chatglm.py …) are not written; transformers "
        "needs them and their auto_map in config.json, this package and vLLM do not",
    ),
)


def export_hf(request: ExportRequest) -> ExportReport:
    """Write Hugging Face's layout, for `GlmForCausalLM`, `Glm4ForCausalLM` or a starter's class; see `_export`."""
    return _export(request, _HF)


def export_chatglm(request: ExportRequest) -> ExportReport:
    """Write the layout of the first publication of GLM-4-9B and GLM-4V-9B; see `_export`."""
    return _export(request, _CHATGLM)


def _export(request: ExportRequest, layout: _Layout) -> ExportReport:
    """Write a folder. At most some 200 MB of weights are held at a time.

    Raises:
        InvalidRequestError: a model without this layout, numbers that do not fit the type, or the folder may not be
            replaced.
        DiskFullError: before anything is written, or while writing.
        CheckpointError, TokenizerError: the source cannot be read, or its vocabulary not be written.
    """
    checkpoint, folder, form = request.checkpoint, request.output, _FORMATS[request.dtype]
    config = layout.config(checkpoint, form.torch)  # refuses what the layout cannot express
    check_folder(checkpoint, folder, _WRITTEN, force=request.force)
    checkpoint.check()
    text = Processor.load(checkpoint)
    tensors = list(layout.tensors(checkpoint))
    planned = [PlannedTensor(tensor.name, tensor.shape, form.stored) for tensor in tensors]
    shards = plan_shards(planned, request.shard_bytes or SHARD_BYTES)
    check_space(folder, sum(shard.nbytes for shard in shards) + _TEXT_NBYTES)
    with atomic_folder(folder) as partial:
        layout.write_text(partial, checkpoint, text)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        parts = _encoded(checkpoint, tensors, form, layout)
        write_shards(partial, shards, _reported(parts, shards, request.progress))
        files = sorted(file.name for file in partial.iterdir())
        nbytes = sum((partial / file).stat().st_size for file in files)
    architecture = config["architectures"][0]
    parameters = num_parameters(checkpoint.config)
    return ExportReport(architecture, request.dtype, len(tensors), parameters, nbytes, layout.notes, tuple(files))


def _encoded(
    checkpoint: Checkpoint, tensors: Sequence[HfTensor], form: _NumberFormat, layout: _Layout
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The tensors, a slab of rows at a time; whole where the rows of heads change places."""
    reorders = checkpoint.config.rotary_half_split or text_class(checkpoint).half_split
    for tensor in tensors:
        rows = tensor.stop - tensor.start
        row_nbytes = 4 * math.prod(tensor.shape) // rows
        step = rows if tensor.rotary and reorders else max(1, SLAB_NBYTES // row_nbytes)
        for start in range(0, rows, step):
            values = layout.read(checkpoint, tensor, start, min(start + step, rows))
            _check_range(values, form, f"{checkpoint.path}: {tensor.name}")
            yield tensor.name, quantize(np.ascontiguousarray(values), ENCODINGS[form.encoder])


def _check_range(values: NDArray[np.float32], form: _NumberFormat, where: str) -> None:
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise CheckpointError(f"{where} holds numbers that are not finite; the checkpoint is damaged")
    if largest > form.largest:
        raise InvalidRequestError(
            f"{where} holds {largest:g}, more than {form.torch} can express; export it as fp32", param="dtype"
        )


def _reported(
    parts: Iterator[tuple[str, NDArray[np.uint8]]], shards: Sequence[Shard], progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    done, total = 0, sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    for name, data in parts:
        yield name, data
        done += data.nbytes
        if progress is not None:
            progress("exporting", done, total)
