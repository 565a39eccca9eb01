"""`export_peft`: an adapter under the names of the checkpoint that PEFT is to load it on.

GLM-4 is published with two sets of names: `-hf` repositories have q, k and v apart (`self_attn.q_proj` …), the original
ones have them as one matrix (`self_attention.query_key_value` …), for remote code and vLLM. An adapter of either can be
written for the other: factors of one matrix are divided, those of several are stacked, with B on the diagonal of a
block matrix; scales go into B, and norms of DoRA that are new are the base's. Where the names fit already tensors are
copied. A prefix has no names of modules, and is copied.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.adapter_folder import adapter_type, find_adapter
from glm4.checkpoints.checkpoint import Checkpoint, split_rotary_rows
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.peft_adapter import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHT_FILE, AdapterFile, check_base
from glm4.checkpoints.peft_prefix import PREFIX_TYPE, PrefixFile
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.checkpoints.safetensors_writer import PlannedTensor, plan_shards, write_shards
from glm4.errors import InvalidRequestError, UnsupportedModelError
from glm4.export.output_path import check_folder
from glm4.export.targets import ExportReport, ExportRequest
from glm4.system.atomic_folder import atomic_folder
from glm4.variants import VARIANTS

_WRITTEN = (CONFIG_FILE, WEIGHT_FILE, "README.md")
Float32 = NDArray[np.float32]

# Modules of a layer by our matrix -> (name, rows of the matrix: attributes of `ModelConfig`).
_HF = {
    "qkv": {"q_proj": "query_size", "k_proj": "key_value_size", "v_proj": "key_value_size"},
    "o": {"o_proj": "hidden_size"},
    "gate_up": {"gate_up_proj": "gate_up_size"},
    "down": {"down_proj": "hidden_size"},
}
_CHATGLM = {
    "qkv": {"query_key_value": "qkv_size"},
    "o": {"dense": "hidden_size"},
    "gate_up": {"dense_h_to_4h": "gate_up_size"},
    "down": {"dense_4h_to_h": "hidden_size"},
}
_PATHS = {
    "hf": ("model.layers", {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}, _HF),
    "chatglm": (
        "transformer.encoder.layers",
        {"qkv": "self_attention", "o": "self_attention", "gate_up": "mlp", "down": "mlp"},
        _CHATGLM,
    ),
}


@dataclass(frozen=True, eq=False)
class _Module:
    """Factors under a new name; `b` includes the scale, `norms` are DoRA's."""

    name: str
    a: Float32
    b: Float32
    norms: Float32 | None


def export_peft(request: ExportRequest) -> ExportReport:
    """Write an adapter alone, as a folder that PEFT loads.

    Raises:
        InvalidRequestError: there is no adapter, the folder may not be replaced, or the model has one set of names.
        CheckpointError, TensorError, UnsupportedModelError: not an adapter of this model.
        DiskFullError: while writing.
    """
    if request.lora is None:
        raise InvalidRequestError("--to peft writes an adapter: name it with --lora", param="lora")
    checkpoint, folder, names = request.checkpoint, find_adapter(request.lora), request.names or "hf"
    if names not in _PATHS:
        raise InvalidRequestError(f"--names is one of {', '.join(_PATHS)}, not {names!r}", param="names")
    if request.output.resolve() == folder.resolve():
        raise InvalidRequestError(f"{folder} is the adapter to be exported; choose another name", param="output")
    check_folder(checkpoint, request.output, _WRITTEN, force=request.force)
    settings = read_json_object(folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    if adapter_type(folder) == PREFIX_TYPE:
        PrefixFile(folder, checkpoint.config, checkpoint.model_type).close()  # it fits
        return _write(request, folder, _with_base(settings, checkpoint, names), None)
    with AdapterFile(folder, checkpoint.config, checkpoint.model_type, merging=True) as adapter:
        check_base(folder, adapter.base, checkpoint.variant)
        if adapter.original_names == (names == "chatglm"):
            return _write(request, folder, _with_base(settings, checkpoint, names), None)
        modules = list(_modules(checkpoint, adapter, names))
    return _write(request, folder, _with_base(_settings(settings, modules), checkpoint, names), modules)


def _modules(checkpoint: Checkpoint, adapter: AdapterFile, names: str) -> Iterator[_Module]:
    """The factors of an adapter for modules of the other set of names.

    Raises:
        InvalidRequestError: the model is not published with both.
        UnsupportedModelError: the adapter changes what has one name only.
    """
    if checkpoint.model_type not in ("chatglm", "glm"):
        raise InvalidRequestError(
            f"models of type {checkpoint.model_type} are published with one set of names; leave --names out",
            param="names",
        )
    if adapter.vision is not None:
        raise UnsupportedModelError(f"{adapter.path} changes the part that sees, which has one set of names")
    prefix, parents, table = _PATHS[names]
    config = checkpoint.config
    for layer, key in sorted(adapter.shapes):
        a, b = adapter.load(layer, key)
        norms = _norms(checkpoint, adapter, layer, key)
        if key == "qkv" and names == "chatglm" and config.rotary_half_split:
            for rows in (b, norms):
                if rows is not None:
                    split_rotary_rows(rows, config)
        start = 0
        for module, size in table[key].items():
            stop = start + getattr(config, size)
            used = adapter.ranks_of(layer, key, start, stop)
            if b.any() and norms is None:  # of stacked factors, each part has its own ranks
                used = used[b[start:stop, used].any(axis=0)]
            if len(used):
                name = f"{prefix}.{layer}.{parents[key]}.{module}"
                yield _Module(name, a[used], b[start:stop, used], None if norms is None else norms[start:stop])
            start = stop


def _norms(checkpoint: Checkpoint, adapter: AdapterFile, layer: int, key: str) -> Float32 | None:
    """DoRA's norms for all rows of a matrix: the base's own for rows that the adapter leaves alone."""
    if not adapter.dora:
        return None
    norms = adapter.magnitudes(layer, key)
    kept = np.isnan(norms)
    if kept.any():
        norms[kept] = np.linalg.norm(checkpoint.load(f"layers.{layer}.{key}"), axis=1)[kept]
    return norms


def _settings(settings: Mapping[str, Any], modules: list[_Module]) -> dict[str, Any]:
    """The configuration for modules whose scales are in B: alpha is the rank."""
    ranks = {module.name: len(module.a) for module in modules}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    last = sorted({name.rpartition(".")[2] for name in ranks})
    return {
        **settings,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": last if _everywhere(ranks, last) else sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _everywhere(ranks: Mapping[str, int], last: list[str]) -> bool:
    """Whether every layer that has one of the modules has all, so that their last names say which."""
    layers = {name.rpartition(".")[0].rpartition(".")[0] for name in ranks}
    indices = {int(layer.rpartition(".")[2]) for layer in layers}
    return len(ranks) == len(layers) * len(last) and indices == set(range(len(indices)))


def _with_base(settings: Mapping[str, Any], checkpoint: Checkpoint, names: str) -> dict[str, Any]:
    """The configuration, naming the repository whose checkpoint has these names, if the model is a known one."""
    variant = checkpoint.variant
    stem = variant.name.removesuffix("-hf")
    if f"{stem}-hf" in VARIANTS:
        variant = VARIANTS[f"{stem}-hf" if names == "hf" else stem]
    return {**settings, "base_model_name_or_path": variant.repo_id or settings.get("base_model_name_or_path")}


def _write(
    request: ExportRequest, folder: Path, settings: Mapping[str, Any], modules: list[_Module] | None
) -> ExportReport:
    """The two files; `modules` None copies the tensors."""
    tensors: dict[str, Float32] = {}
    for module in modules or []:
        stem = f"base_model.model.{module.name}.lora_"
        tensors |= {stem + "A.weight": module.a, stem + "B.weight": module.b}
        if module.norms is not None:
            tensors[stem + "magnitude_vector"] = module.norms
    output = request.output
    with atomic_folder(output) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if modules is None:
            shutil.copyfile(folder / WEIGHT_FILE, partial / WEIGHT_FILE)
        else:
            planned = [PlannedTensor(name, values.shape, "F32") for name, values in tensors.items()]
            (shard,) = plan_shards(planned, 1 << 62)
            parts = ((name, np.ascontiguousarray(values).view(np.uint8)) for name, values in tensors.items())
            write_shards(partial, [replace(shard, file=WEIGHT_FILE)], parts)
    source = SafetensorsSource(output / WEIGHT_FILE)
    infos = [source.info(name) for name in source.names()]
    source.close()
    nbytes = sum((output / name).stat().st_size for name in (CONFIG_FILE, WEIGHT_FILE))
    dtype = infos[0].dtype.lower() if infos else request.dtype
    parameters = sum(math.prod(info.shape) for info in infos)
    return ExportReport("PEFT", dtype, len(infos), parameters, nbytes, (), (CONFIG_FILE, WEIGHT_FILE))
