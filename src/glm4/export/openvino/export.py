"""`export_openvino`: a checkpoint as a folder that openvino-genai and the `openvino` backend run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glm4.backends.openvino.options import GRAPH_FILE, MARK
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import HF_CLASSES, class_config
from glm4.checkpoints.json_file import read_json_object
from glm4.errors import CheckpointError, DiskFullError, InvalidRequestError
from glm4.export.targets import ExportReport, ExportRequest, Progress
from glm4.loading.packed_folder import side_files, write_text_side
from glm4.model.precision import PRECISIONS, Precision, weight_nbytes
from glm4.model.tensors import num_parameters
from glm4.requests.processor import Processor
from glm4.system.atomic_folder import atomic_folder
from glm4.system.disk_space import check_space
from glm4.system.extras import Package, require_packages

PACKAGES = (Package("openvino", "2026.4"),)
_SCRATCH = "weights.scratch"
# A stored group of int4 is 32 codes with a float32 scale and an offset of a byte; ours packs the scale in a byte.
_MOST_GROWTH = 1.25
_TEXT_NBYTES = 64 << 20


def export_openvino(request: ExportRequest) -> ExportReport:
    """Write OpenVINO's intermediate representation, configuration, tokenizer and chat template.

    Some 500 MB of weights are held at a time. While it is written the folder takes its size twice on the disk.

    Raises:
        InvalidRequestError: a model that sees, a packed one of another dtype, or the folder may not be replaced.
        MissingExtraError: OpenVINO is not installed.
        DiskFullError: before anything is written, or while writing.
        CheckpointError, TokenizerError: the source cannot be read.
    """
    require_packages("the export to OpenVINO", "openvino", PACKAGES)
    checkpoint, folder = request.checkpoint, request.output
    precision = _checked_source(checkpoint, request.dtype)
    _check_folder(checkpoint, folder, request.force)
    checkpoint.check()
    text = Processor.load(checkpoint)
    size = int(weight_nbytes(checkpoint.config, precision) * _MOST_GROWTH)
    side = sum(file.stat().st_size for file in side_files(checkpoint)) + _TEXT_NBYTES
    check_space(folder, 2 * size + side)
    with atomic_folder(folder) as partial:
        write_text_side(partial, checkpoint, text.tokenizer)
        _write_settings(partial, checkpoint, text, precision)
        _write_graph(partial, checkpoint, text, precision, size, request.progress)
        files = sorted(path.name for path in partial.iterdir())
        total = sum((partial / name).stat().st_size for name in files)
    return ExportReport(
        HF_CLASSES[checkpoint.model_type].name,
        precision.name,
        len(checkpoint.tensor_names()),
        num_parameters(checkpoint.config),
        total,
        _notes(checkpoint),
        tuple(files),
    )


def _checked_source(checkpoint: Checkpoint, dtype: str) -> Precision:
    if checkpoint.config.vision is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} sees pictures; only text models are exported to OpenVINO", param="model"
        )
    packed = checkpoint.packed
    if packed is None:
        return PRECISIONS[dtype]
    if packed.precision.name != dtype:
        raise InvalidRequestError(
            f"{checkpoint.path} is packed as {packed.precision.name}, and rounding it again would lose quality: export "
            f"it as {packed.precision.name}, or start from the original model",
            param="dtype",
        )
    return packed.precision


def _check_folder(checkpoint: Checkpoint, folder: Path, force: bool) -> None:
    """Refuse to overwrite anything without `force`, and with it anything that is not such an export."""
    if not folder.exists() and not folder.is_symlink():
        return
    original = checkpoint.path.resolve()
    if original == folder.resolve() or folder.resolve() in original.parents:
        raise InvalidRequestError(f"{folder} holds the model to be exported; choose another name", param="output")
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not _is_export(folder)):
        raise InvalidRequestError(
            f"{folder} exists and is not a model exported to OpenVINO; it is not replaced even with --force: choose "
            "another",
            param="output",
        )
    if not force:
        raise InvalidRequestError(f"{folder} exists; --force replaces it", param="output")


def _is_export(folder: Path) -> bool:
    try:
        return MARK in read_json_object(folder / "config.json")
    except CheckpointError:
        return False


def _write_settings(folder: Path, checkpoint: Checkpoint, text: Processor, precision: Precision) -> None:
    """config.json with every id that ends an answer, and generation_config.json, which openvino-genai reads."""
    stops = tuple(dict.fromkeys((*checkpoint.config.eos_token_ids, *sorted(text.stop_ids))))
    config = replace(checkpoint.config, eos_token_ids=stops)
    settings = class_config(HF_CLASSES[checkpoint.model_type], config, "float32")
    settings[MARK] = {"dtype": precision.name, "source": checkpoint.path.resolve().name}
    _write_json(folder / "config.json", settings)
    generation = {**checkpoint.generation_config, "eos_token_id": list(stops)}
    if config.pad_token_id is not None:
        generation["pad_token_id"] = config.pad_token_id
    _write_json(folder / "generation_config.json", generation)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_graph(
    folder: Path, checkpoint: Checkpoint, text: Processor, precision: Precision, size: int, progress: Progress | None
) -> None:
    import openvino as ov

    from glm4.export.openvino.graph import GraphBuilder
    from glm4.export.openvino.weights import Scratch

    config = checkpoint.config
    scratch = Scratch(folder / _SCRATCH, checkpoint, precision, size, progress)
    banned = text.tokenizer.unnamed_ids(config.vocab_size)
    builder = GraphBuilder(config, HF_CLASSES[checkpoint.model_type], scratch, banned)
    if progress is not None:
        progress("saving", 0, 0)
    try:
        ov.save_model(builder.build(), folder / GRAPH_FILE, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO does not say why it could not write
        raise DiskFullError(
            f"OpenVINO could not write {size / 1e9:.1f} GB to {folder.parent} ({error}); is the disk full?"
        ) from None
    (folder / _SCRATCH).unlink()


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.packed is None or not checkpoint.packed.precision.extras.get("channel_scales"):
        return ()
    return (
        "the channels of this calibrated model were rescaled, so LoRA adapters of the original do not fit its export",
    )
