"""`export_gguf_lora`: a PEFT adapter as a GGUF file, for `llama-server --lora` and Ollama's ADAPTER.

The file has factors for the tensors of the model's GGUF file. Where that has q, k and v as one matrix, so do the
factors: A is stacked, B is on the diagonal of a block matrix. Programs multiply each pair by alpha / rank; what an
adapter has beyond that (rank-stabilized scales, ranks and alphas by module) is in B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.adapter_folder import adapter_type, find_adapter
from glm4.checkpoints.checkpoint import Checkpoint, split_rotary_rows
from glm4.checkpoints.gguf_encoders import ENCODINGS, quantize
from glm4.checkpoints.gguf_writer import PlannedTensor, file_nbytes, header_bytes, write_tensors
from glm4.checkpoints.peft_adapter import AdapterFile, check_base
from glm4.checkpoints.peft_prefix import PREFIX_TYPE
from glm4.errors import InvalidRequestError, TensorError, UnsupportedModelError
from glm4.export.gguf_layout import ARCHITECTURES, Architecture, file_names
from glm4.export.gguf_types import FILE_TYPES
from glm4.export.output_path import check_gguf_file
from glm4.export.targets import ExportReport, ExportRequest
from glm4.model.tensors import model_tensors
from glm4.system.atomic_file import atomic_file
from glm4.system.disk_space import check_space

_LARGEST_FLOAT16 = 65504


class _Pair(NamedTuple):
    """Factors for one tensor of the model's file: its name, the canonical matrix, which rows, which ranks."""

    name: str
    layer: int
    key: str
    start: int
    stop: int
    ranks: NDArray[np.intp]


def export_gguf_lora(request: ExportRequest) -> ExportReport:
    """Write the adapter alone; a training run, or a checkpoint of one, is an adapter, too.

    Raises:
        InvalidRequestError: the file may not be replaced, or the numbers do not fit the type.
        CheckpointError, TensorError, UnsupportedModelError: not an adapter of this model.
        DiskFullError: before anything is written, or while writing.
    """
    checkpoint, file = request.checkpoint, request.output
    if request.lora is None:
        raise InvalidRequestError("there is no adapter to export", param="lora")
    folder = find_adapter(request.lora)
    if adapter_type(folder) == PREFIX_TYPE:
        raise UnsupportedModelError(
            f"{folder} is a prefix (P-Tuning v2), for which GGUF has no form; serve it here, beside the model"
        )
    if checkpoint.config.vision is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} sees pictures; there is no GGUF file of it to adapt", param="model"
        )
    architecture = ARCHITECTURES[checkpoint.model_type]
    check_gguf_file(checkpoint, file, force=request.force)
    with AdapterFile(folder, checkpoint.config, checkpoint.model_type) as adapter:
        check_base(folder, adapter.base, checkpoint.variant)
        pairs = list(_pairs(checkpoint, architecture, adapter))
        alpha = min(len(pair.ranks) for pair in pairs)
        planned = [tensor for pair in pairs for tensor in _planned(pair, adapter, request.dtype)]
        metadata: dict[str, Any] = {
            "general.architecture": architecture.name,
            "general.type": "adapter",
            "general.name": request.name or folder.resolve().name,
            "general.file_type": FILE_TYPES[request.dtype].number,
            "adapter.type": "lora",
            "adapter.lora.alpha": float(alpha),
        }
        header = header_bytes(metadata, planned)
        total = file_nbytes(header, planned)
        check_space(file, total)
        with atomic_file(file) as out:
            out.write(header)
            write_tensors(out, planned, _encoded(request, architecture, adapter, pairs, alpha))
    parameters = sum(int(np.prod(tensor.shape)) for tensor in planned)
    return ExportReport(architecture.name, request.dtype, len(planned), parameters, total)


def _pairs(checkpoint: Checkpoint, architecture: Architecture, adapter: AdapterFile) -> Iterator[_Pair]:
    """In model order. A model that is a GGUF file keeps its division of matrices, another has ours."""
    tensors = model_tensors(checkpoint.config)
    for layer, key in sorted(adapter.shapes):
        name = f"layers.{layer}.{key}"
        if checkpoint.kind == "gguf":
            names = {piece.name: piece.shape[0] for piece in checkpoint.tensor_map.recipes[name].pieces}
        else:
            names = file_names(tensors[name], checkpoint.config, architecture)
        start = 0
        for file_name, rows in names.items():
            ranks = adapter.ranks_of(layer, key, start, start + rows)
            if len(ranks):
                yield _Pair(file_name, layer, key, start, start + rows, ranks)
            start += rows


def _planned(pair: _Pair, adapter: AdapterFile, dtype: str) -> Iterator[PlannedTensor]:
    encoding, rank = ENCODINGS[dtype], len(pair.ranks)
    columns = adapter.shapes[pair.layer, pair.key].columns
    for letter, shape in (("a", (rank, columns)), ("b", (pair.stop - pair.start, rank))):
        yield PlannedTensor(f"{pair.name}.lora_{letter}", shape, encoding.number, encoding.nbytes(shape))


def _encoded(
    request: ExportRequest, architecture: Architecture, adapter: AdapterFile, pairs: list[_Pair], alpha: int
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for done, pair in enumerate(pairs, start=1):
        a, b = adapter.load(pair.layer, pair.key)
        if pair.key == "qkv" and architecture.half_split:
            split_rotary_rows(b, request.checkpoint.config)
        scale = np.float32(len(pair.ranks) / alpha)
        with np.errstate(over="ignore"):  # checked below
            factors = {"a": a[pair.ranks], "b": b[pair.start : pair.stop, pair.ranks] * scale}
        for letter, values in factors.items():
            name = f"{pair.name}.lora_{letter}"
            _check_range(values, request.dtype, f"{request.lora}: {name}")
            yield name, quantize(np.ascontiguousarray(values), ENCODINGS[request.dtype])
        if request.progress is not None:
            request.progress("exporting", done, len(pairs))


def _check_range(values: NDArray[np.float32], dtype: str, where: str) -> None:
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise TensorError(f"{where} holds numbers that are not finite; the adapter is damaged")
    if dtype == "f16" and largest > _LARGEST_FLOAT16:
        raise InvalidRequestError(f"{where} holds {largest:g}, more than float16 can express; use f32", param="dtype")
