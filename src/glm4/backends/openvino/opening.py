"""From an exported folder and options to a pipeline: checks, properties, and the size of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
import openvino_genai as genai

from glm4.backends.base import ModelFiles
from glm4.backends.openvino.options import GRAPH_FILE, MARK, OpenVINOOptions
from glm4.checkpoints.json_file import read_json_object
from glm4.errors import CheckpointError, InvalidRequestError, OutOfMemoryError
from glm4.system.memory import available_memory

_BLOCK = 32  # tokens; GPUs use 16, of which twice as many are then needed
_SHARE = 0.5  # of free memory, for the cache
_CACHE_TYPES = {"fp32": "f32", "fp16": "f16", "int8": "u8"}
_CACHE_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
_SCALE_BYTES = 8  # of each head of a token's keys or values in int8


@dataclass(frozen=True)
class Opened:
    """A pipeline, and the longest sequence that its cache holds."""

    pipeline: Any
    max_model_len: int


def open_pipeline(files: ModelFiles, options: OpenVINOOptions) -> Opened:
    """Read and compile an exported model.

    Raises:
        CheckpointError: the folder is not a model that `glm4 export --to openvino` wrote, or OpenVINO cannot read it.
        InvalidRequestError: there is no such device, or a property is refused.
        OutOfMemoryError: the cache would not hold one sequence.
    """
    settings = _checked_settings(files)
    device = _checked_device(options.device)
    context = files.context or int(settings["max_position_embeddings"])
    if options.max_model_len is not None and options.max_model_len > context:
        raise InvalidRequestError(
            f"max_model_len is at most {context}, the model's context, not {options.max_model_len}",
            param="max_model_len",
        )
    wanted = options.max_model_len or context
    blocks = _blocks(files.path, settings, options, device, wanted)
    if options.max_model_len is not None and blocks * _BLOCK < wanted:
        raise OutOfMemoryError(
            f"the KV cache has room for {blocks * _BLOCK} tokens, which is less than max_model_len ({wanted}); raise "
            "kv_cache_memory, or ask for a smaller context"
        )
    if blocks < 1:
        raise OutOfMemoryError("there is no memory left for a KV cache; set kv_cache_memory")
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = blocks if device == "CPU" else 2 * blocks
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.max_num_batched_tokens = options.max_num_batched_tokens
    scheduler.enable_prefix_caching = options.enable_prefix_caching
    try:
        pipeline = genai.ContinuousBatchingPipeline(str(files.path), scheduler, device, properties(options))
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO cannot open {files.path} on {device}: {_last_line(error)}") from None
    return Opened(pipeline, min(wanted, blocks * _BLOCK))


def properties(options: OpenVINOOptions) -> dict[str, Any]:
    """OpenVINO's properties."""
    made: dict[str, Any] = {}
    if options.compute_precision != "auto":
        made["INFERENCE_PRECISION_HINT"] = options.compute_precision
    if options.compute_precision == "f32":
        made["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    if options.cache_dtype != "auto":
        made["KV_CACHE_PRECISION"] = _CACHE_TYPES[options.cache_dtype]
    if options.num_threads is not None:
        made["INFERENCE_NUM_THREADS"] = options.num_threads
    return {**made, **options.ov_config}


def _checked_settings(files: ModelFiles) -> Mapping[str, Any]:
    path = files.path
    settings = read_json_object(path / "config.json") if (path / "config.json").is_file() else {}
    if MARK in settings and (path / GRAPH_FILE).is_file():
        return settings
    raise CheckpointError(
        f"{path} is not a model exported to OpenVINO; write one with: glm4 export {files.name} --to openvino -o FOLDER"
    )


def _checked_device(device: str) -> str:
    there = ov.Core().available_devices
    name = device.upper()
    if name == "AUTO":
        return next((one for one in there if one.startswith("GPU")), "CPU")
    if name in there or (name == "GPU" and "GPU.0" in there):
        return name
    raise InvalidRequestError(f"OpenVINO finds no device {device} here; it finds {', '.join(there)}", param="device")


def _blocks(folder: Path, settings: Mapping[str, Any], options: OpenVINOOptions, device: str, length: int) -> int:
    """Blocks of the cache: as many as fit, and no more than all sequences need."""
    usual = "int8" if device == "CPU" else "fp16"
    dtype = usual if options.cache_dtype == "auto" else options.cache_dtype
    width = settings["head_dim"] * _CACHE_BYTES[dtype] + (_SCALE_BYTES if dtype == "int8" else 0)
    token = 2 * settings["num_hidden_layers"] * settings["num_key_value_heads"] * width
    room = options.kv_cache_memory
    if room is None:
        weights = (folder / GRAPH_FILE).with_suffix(".bin").stat().st_size
        room = int(_SHARE * (_free_memory(device) - weights))
    # A block more for each sequence: its last one may be used in part.
    return min(max(0, int(room // (token * _BLOCK))), options.max_num_seqs * (-(-length // _BLOCK) + 1))


def _free_memory(device: str) -> int:
    if device == "CPU":
        return available_memory()
    return int(ov.Core().get_property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
