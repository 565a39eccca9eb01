"""`export_gguf`: a checkpoint as a GGUF file or several, a slab of rows at a time, atomically."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint, split_rotary_rows
from glm4.checkpoints.gguf_encoders import ENCODINGS, Encoding, quantize
from glm4.checkpoints.gguf_writer import write_tensors
from glm4.errors import CheckpointError, InvalidRequestError
from glm4.export.gguf_layout import ARCHITECTURES, Architecture, FilePart, file_parts, model_keys
from glm4.export.gguf_lora import export_gguf_lora
from glm4.export.gguf_rows import float_rows, stored_rows, stored_type
from glm4.export.gguf_split import planned_files
from glm4.export.gguf_types import FILE_TYPES, encoding_of
from glm4.export.output_path import check_gguf_file
from glm4.export.targets import ExportReport, ExportRequest, Progress
from glm4.export.text_side import stop_ids, template_text
from glm4.model.tensors import num_parameters
from glm4.requests.processor import Processor
from glm4.system.atomic_file import atomic_files
from glm4.system.disk_space import check_space
from glm4.tokenizer.gguf_saving import MOST_STOPS, gguf_special_ids, gguf_vocabulary
from glm4.tokenizer.gguf_vocab import PRE_TOKENIZERS

SLAB_NBYTES = 32 << 20
_LARGEST_FLOAT16 = 65504
_WIDE = ("f32", "bf16")  # types with the range of float32
_QUANTIZATION_VERSION = 2
# Names of sampling defaults, as `side_files.py` reads them.
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def export_gguf(request: ExportRequest) -> ExportReport:
    """Write a GGUF file for llama.cpp and programs built on it, and for this package; with an adapter, that alone.

    At most some 200 MB of weights are held at a time. Vectors stay f32. Blocks that the source has in the type of the
    file, and codes of packed checkpoints that the type can hold, are copied without being rounded again.

    Raises:
        InvalidRequestError: a model that GGUF cannot express, or the file may not be replaced.
        DiskFullError: before anything is written, or while writing.
        CheckpointError, TokenizerError: the source cannot be read.
    """
    if request.lora is not None:
        if request.shard_bytes is not None:
            raise InvalidRequestError("an adapter is one file; leave --shard-size out", param="shard_bytes")
        return export_gguf_lora(request)
    checkpoint, file, dtype = request.checkpoint, request.output, request.dtype
    architecture = _checked_source(checkpoint)
    encoding = encoding_of(checkpoint, dtype)
    checkpoint.check()
    text = Processor.load(checkpoint)
    title = request.name or checkpoint.path.resolve().name.removesuffix(".gguf")
    metadata = _general_keys(checkpoint, architecture, dtype, title)
    metadata |= model_keys(checkpoint.config, architecture)
    text_keys, notes = _text_keys(checkpoint, text, architecture)
    metadata |= text_keys
    parts = list(file_parts(checkpoint.config, architecture, encoding))
    files = planned_files(file, metadata, [part.planned for part in parts], request.shard_bytes)
    for planned in files:
        check_gguf_file(checkpoint, planned.path, force=request.force)
    total = sum(planned.nbytes for planned in files)
    check_space(file, total)
    headers = sum(len(planned.header) for planned in files)
    encoded = _reported(_encoded(checkpoint, parts, architecture), headers, total, request.progress)
    with atomic_files([planned.path for planned in files]) as outs:
        for planned, out in zip(files, outs, strict=True):
            out.write(planned.header)
            write_tensors(out, planned.tensors, encoded)
        if next(encoded, None) is not None:
            raise ValueError("there are more tensors than the headers announce")
    parameters = num_parameters(checkpoint.config)
    report = ExportReport(architecture.name, dtype, len(parts), parameters, total, notes)
    if len(files) == 1:
        return report
    names = tuple(planned.path.name for planned in files)
    return replace(report, files=names, next_command=f"glm4 chat -m {shlex.quote(str(files[0].path))}")


def _checked_source(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.config.vision is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} sees pictures, and its vision tower has no GGUF architecture that computes it; only "
            "text models are exported",
            param="model",
        )
    return ARCHITECTURES[checkpoint.model_type]


def _general_keys(checkpoint: Checkpoint, architecture: Architecture, dtype: str, title: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"architecture": architecture.name, "type": "model", "name": title}
    if isinstance(basename := checkpoint.gguf_metadata.get("general.basename"), str):
        keys["basename"] = basename  # by which the starters are recognized
    keys["file_type"] = FILE_TYPES[dtype].number
    if dtype.startswith("q"):
        keys["quantization_version"] = _QUANTIZATION_VERSION
    generation = checkpoint.generation_config
    if generation.get("do_sample") is not False:
        for ours, theirs in _SAMPLING.items():
            if (value := generation.get(ours)) is not None:
                keys[f"sampling.{theirs}"] = int(value) if ours == "top_k" else float(value)
    return {f"general.{key}": value for key, value in keys.items()}


def _text_keys(
    checkpoint: Checkpoint, text: Processor, architecture: Architecture
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Vocabulary, special ids and chat template; and notes for the user."""
    config, tokenizer = checkpoint.config, text.tokenizer
    pre = architecture.pre or checkpoint.gguf_metadata.get("tokenizer.ggml.pre", next(iter(PRE_TOKENIZERS)))
    stops = stop_ids(checkpoint, text)
    padding = stops[0] if config.pad_token_id is None else config.pad_token_id
    keys = gguf_vocabulary(tokenizer, config.vocab_size, pre) | gguf_special_ids(tokenizer, stops, padding)
    if architecture.name in ("chatglm", "glm4"):
        keys["tokenizer.ggml.unknown_token_id"] = stops[0]
    keys["tokenizer.chat_template"] = template_text(text)
    left = stops[MOST_STOPS:]
    notes = (f"GGUF has room for {MOST_STOPS} ids that end an answer; left out: {left}",) if left else ()
    return keys, notes


def _encoded(
    checkpoint: Checkpoint, parts: list[FilePart], architecture: Architecture
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The file's tensors, a slab of rows at a time."""
    for name, pieces in groupby(parts, key=lambda part: part.name):
        shape = checkpoint.shape(name)
        kind = stored_type(checkpoint, name) if len(shape) == 2 else None
        step = max(1, SLAB_NBYTES // (4 * shape[-1])) if len(shape) == 2 else shape[0]
        readers: dict[bool, Callable[[int, int], NDArray[Any]]] = {}
        for part in pieces:
            exact = part.encoding.block_format.weights > 1 and part.encoding.block_format.name == kind
            if exact not in readers:
                readers[exact] = _rows_in_order(checkpoint, part, architecture, exact)
            for start in range(part.start, part.stop, step):
                values = readers[exact](start, min(start + step, part.stop))
                if not exact:
                    _check_range(values, part.encoding, f"{checkpoint.path}: {name}")
                    values = quantize(values, part.encoding)
                yield part.planned.name, values.reshape(-1)


def _rows_in_order(
    checkpoint: Checkpoint, part: FilePart, architecture: Architecture, exact: bool
) -> Callable[[int, int], NDArray[Any]]:
    """A function from a range of a matrix's rows to these rows in the file's order: blocks if `exact`, else numbers."""
    read = partial(stored_rows if exact else float_rows, checkpoint, part.name)
    if not part.rotary:
        return read
    whole = read(0, checkpoint.shape(part.name)[0])
    if architecture.half_split:  # rows change places within a head
        split_rotary_rows(whole, checkpoint.config)
    return lambda start, stop: whole[start:stop]


def _check_range(values: NDArray[np.float32], encoding: Encoding, where: str) -> None:
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise CheckpointError(f"{where} holds numbers that are not finite; the checkpoint is damaged")
    if largest > _LARGEST_FLOAT16 and encoding not in [ENCODINGS[name] for name in _WIDE]:
        raise InvalidRequestError(
            f"{where} holds {largest:g}, more than float16 can express; export it as bf16 or f32", param="dtype"
        )


def _reported(
    parts: Iterator[tuple[str, NDArray[np.uint8]]], done: int, total: int, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for name, data in parts:
        yield name, data
        done += data.nbytes
        if progress is not None:
            progress("exporting", done, total)
    if progress is not None:
        progress("exporting", total, total)
