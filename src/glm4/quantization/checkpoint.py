"""`quantize`: a checkpoint on disk to a packed one, a slab of rows at a time, atomically.

Rounding can be calibrated: the model writes some text (`calibration_text.py`), and its matrices are rounded so that
the layers' outputs on that text change least, after their channels were rescaled (`calibration.py`). That takes minutes
per 1e9 parameters and memory for one layer in float32 and its statistics, where plain rounding takes seconds and a slab
of rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.packed_format import is_packed, packed_shapes
from glm4.checkpoints.packed_writer import packed_file_nbytes
from glm4.checkpoints.safetensors import SINGLE_FILE
from glm4.errors import CheckpointError, InvalidRequestError
from glm4.kernels import get_kernels
from glm4.loading.packed_folder import folder_nbytes, write_packed_checkpoint
from glm4.loading.weights import kept_codes
from glm4.model.config import ModelConfig
from glm4.model.precision import PRECISIONS, Precision
from glm4.model.tensors import Extras, head_name, matrix_shapes, num_parameters
from glm4.quantization.calibration import Part, calibrated, plain_parts
from glm4.quantization.calibration_text import SEQUENCE, calibration_text
from glm4.quantization.frequent_tokens import frequent_count
from glm4.quantization.layer_rounder import corrects
from glm4.quantization.report import QuantizationReport
from glm4.requests.processor import Processor
from glm4.system.atomic_folder import atomic_folder
from glm4.system.disk_space import check_space

Progress = Callable[[str, float, float], None]

TARGETS = ("int8", "int4")
# Calibration is the default up to this size: about an hour at most on two cores.
CALIBRATED_PARAMETERS = 2_000_000_000
# Sequences to calibrate on, and how many must do where they take hours: with 12 instead of 32 the divergence of
# starter-large (1.5e9 parameters) in int4 is a sixth larger.
SEQUENCES, LARGE_SEQUENCES, LARGE_PARAMETERS = 32, 12, 2_000_000_000
# Bits of a whole int4 file per parameter of the model; the frequent tokens' rows stay within this.
MAX_INT4_BITS = 4.6
REPORT_FILE = "quantization_report.json"


def quantize(
    checkpoint: Checkpoint,
    target: str,
    folder: Path,
    *,
    force: bool = False,
    source: str | None = None,
    calibrate: bool | None = None,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Write `checkpoint` as a packed checkpoint. Without calibration at most some 200 MB of weights are held at a time.

    The folder appears complete or not at all: it is written under another name and renamed at the end.

    Args:
        checkpoint: opened, of any kind except "packed".
        target: one of TARGETS.
        folder: must not exist, unless `force` is given and it is a packed checkpoint (or empty).
        source: name of the original in the new configuration; None uses the name of its file or folder.
        calibrate: whether weights are rounded with error compensation; None means yes up to CALIBRATED_PARAMETERS.
        progress: called with ("quantizing", done, total) in packed bytes; before that with ("loading", …) and
            ("writing calibration text", …).

    Raises:
        InvalidRequestError: unknown target, a packed source, or `folder` may not be replaced.
        DiskFullError: before anything is written, or while writing.
        CheckpointError, TokenizerError: the source cannot be read.
    """
    precision = _checked_target(checkpoint, target)
    calibrate = is_calibrated(checkpoint.config, calibrate)
    _check_folder(checkpoint, folder, force)
    checkpoint.check()
    text = Processor.load(checkpoint)
    if calibrate:
        coded = kept_codes(checkpoint, precision)
        precision = replace(precision, extras=calibrated_extras(checkpoint.config, precision, coded))
    check_space(folder, folder_nbytes(checkpoint, precision))
    report = QuantizationReport(precision.name, num_parameters(checkpoint.config))
    with atomic_folder(folder) as partial:
        if calibrate:
            ids = calibration_text(checkpoint, text, calibration_sequences(checkpoint.config), progress)
            report.calibration_tokens = ids.size
            frequent = precision.extras.get("frequent_tokens", 0)
            made = calibrated(checkpoint, precision.linear, ids, get_kernels(), frequent)
        else:
            made = plain_parts(checkpoint, packed_shapes(checkpoint.config), precision, get_kernels())
        parts = _reported(made, report, packed_file_nbytes(checkpoint.config, precision), progress)
        name = source or checkpoint.path.resolve().name
        write_packed_checkpoint(partial, checkpoint, text.tokenizer, precision, parts, name)
        report.nbytes = (partial / SINGLE_FILE).stat().st_size
        (partial / REPORT_FILE).write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def is_calibrated(config: ModelConfig, calibrate: bool | None) -> bool:
    """Whether a model is calibrated; None depends on its size."""
    return num_parameters(config) <= CALIBRATED_PARAMETERS if calibrate is None else calibrate


def calibration_sequences(config: ModelConfig) -> int:
    """How many sequences of calibration text are worth their time."""
    return SEQUENCES if num_parameters(config) <= LARGE_PARAMETERS else LARGE_SEQUENCES


def calibration_seconds(config: ModelConfig, target: str) -> float:
    """Approximate seconds of calibration here, from its operations and a matrix product timed now."""
    tokens, layers, hidden = calibration_sequences(config) * SEQUENCE, config.num_hidden_layers, config.hidden_size
    format, shapes = PRECISIONS[target].linear, matrix_shapes(config)
    per_layer = sum(_calibration_operations(format, *shape, tokens) for shape in shapes.values())
    table = config.vocab_size * hidden
    head = tokens * hidden**2 + 2 * table * hidden
    if format == "int4":  # rounded three times, plus one pass to find the frequent tokens
        head += 4 * table * hidden + tokens * table
    weights = layers * sum(rows * cols for rows, cols in shapes.values())
    writing = 3 * tokens * (table + weights)  # in int8, many texts at once
    x = np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return float((layers * per_layer + head + writing) / (2 * 1024**3 / min(times)))


def _calibration_operations(format: str, rows: int, cols: int, tokens: int) -> float:
    """For one matrix: two passes of the text, H, its factors, the rounding; the correction and its slow solve."""
    operations: float = 4 * tokens * rows * cols + tokens * cols**2 + cols**3 + rows * cols**2
    if format == "int4":  # rounded three times
        operations += 4 * rows * cols**2
    if corrects(format, tokens, cols):
        products = min(tokens * (cols**2) + rows * cols**2, 2 * tokens * rows * cols)
        operations += 2 * products + 4 / 3 * cols**3 + 4 * rows * cols**2
    return operations


def calibrated_extras(config: ModelConfig, precision: Precision, coded: Collection[str]) -> Extras:
    """What calibration adds to the usual tensors: a head in less than int8 has some rows twice.

    Args:
        coded: matrices that keep the file's codes.
    """
    scaled = {"channel_scales": True}
    head = head_name(config)
    if precision.format_of(head) != "int4" or head in coded:
        return scaled
    size = packed_file_nbytes(config, replace(precision, extras=scaled))
    room = MAX_INT4_BITS / 8 * num_parameters(config) - size
    return {**scaled, "frequent_tokens": frequent_count(config.vocab_size, config.hidden_size, room)}


def _reported(
    made: Iterator[Part], report: QuantizationReport, total: int, progress: Progress | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The parts in file order, matrices before vectors; adds up the errors."""
    vectors: dict[str, NDArray[np.float32]] = {}
    kernels, done = get_kernels(), 0
    for part in made:
        if part.packed is None:
            vectors[part.name] = part.source
        else:
            kind = report.kind(part.name, part.packed.format)
            kind.tensors += part.first
            kind.add(part.source, kernels.unpack(part.packed), part.packed.nbytes)
            if part.output_error is not None:
                kind.add_output(*part.output_error)
            yield part.name, part.packed.data
        done += part.source.nbytes if part.packed is None else part.packed.nbytes
        if progress is not None:
            progress("quantizing", done, total)
    yield from vectors.items()
    if progress is not None:  # the file's header and checksums are not parts
        progress("quantizing", total, total)


def _checked_target(checkpoint: Checkpoint, target: str) -> Precision:
    if target not in TARGETS:
        raise InvalidRequestError(f"a model is quantized to {' or '.join(TARGETS)}, not {target!r}", param="to")
    if checkpoint.packed is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} is already packed, as {checkpoint.packed.precision.name}; quantizing twice loses "
            "quality. Start from the original model",
            param="model",
        )
    return PRECISIONS[target]


def _check_folder(checkpoint: Checkpoint, folder: Path, force: bool) -> None:
    """Refuse to overwrite anything without `force`, and with it anything that is not a packed checkpoint of ours."""
    if not folder.exists() and not folder.is_symlink():
        return
    original = checkpoint.path.resolve()
    if original == folder.resolve() or folder.resolve() in original.parents:
        raise InvalidRequestError(f"{folder} holds the model to be quantized; choose another name", param="output")
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not _is_ours(folder)):
        raise InvalidRequestError(
            f"{folder} exists and is not a packed checkpoint; it is not replaced even with --force: choose another",
            param="output",
        )
    if not force:
        raise InvalidRequestError(f"{folder} exists; --force replaces it", param="output")


def _is_ours(folder: Path) -> bool:
    try:
        return is_packed(read_json_object(folder / "config.json"))
    except CheckpointError:
        return False
