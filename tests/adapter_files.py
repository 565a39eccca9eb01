"""LoRA adapters on disk in PEFT's format, written without PEFT: for tests that need many, or broken ones.

That the format is PEFT's is shown by tests/model/test_adapter_parity.py, whose adapters PEFT saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glm4.kernels import get_kernels, random_packed
from glm4.loading.lora import read_adapter
from glm4.model.config import ModelConfig
from glm4.model.lora import LoraAdapter, LoraFactors
from glm4.model.prefix import PrefixAdapter
from glm4.model.tensors import matrix_shapes
from golden_models import Tensors
from tiny import safetensors_bytes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def settings(targets: tuple[str, ...] = TARGETS, **changes: Any) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it; a change of None stays as null."""
    plain: dict[str, Any] = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "base_model_name_or_path": "somewhere/glm-4-9b-chat-hf", "bias": "none", "corda_config": None,
        "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.05,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
        "peft_version": "0.21.0", "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None,
        "target_modules": list(targets), "target_parameters": None, "task_type": "CAUSAL_LM",
        "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    }  # fmt: skip
    return plain | changes


def factors(
    config: ModelConfig, seed: int = 0, targets: tuple[str, ...] = TARGETS, rank: int = 4, scale: float = 0.3
) -> Tensors:
    """Random factors for the given modules of every layer, under PEFT's names."""
    rng = np.random.default_rng(seed)
    hidden, ffn, query, keys = config.hidden_size, config.intermediate_size, config.query_size, config.key_value_size
    shapes = {
        "q_proj": ("self_attn", query, hidden), "k_proj": ("self_attn", keys, hidden),
        "v_proj": ("self_attn", keys, hidden), "o_proj": ("self_attn", hidden, query),
        "gate_up_proj": ("mlp", 2 * ffn, hidden), "down_proj": ("mlp", hidden, ffn),
    }  # fmt: skip
    tensors: Tensors = {}
    for layer in range(config.num_hidden_layers):
        for target in targets:
            part, rows, columns = shapes[target]
            stem = f"base_model.model.model.layers.{layer}.{part}.{target}.lora_"
            tensors[stem + "A.weight"] = (scale * rng.standard_normal((rank, columns))).astype(np.float32)
            tensors[stem + "B.weight"] = (scale * rng.standard_normal((rows, rank))).astype(np.float32)
    return tensors


def write_adapter(folder: Path, tensors: Tensors, config: Mapping[str, Any] | None = None, dtype: str = "F32") -> Path:
    """The two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings() if config is None else config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
    return folder


def packed_adapter(config: ModelConfig, seed: int, rank: int = 4, format: str = "fp32") -> LoraAdapter:
    """Random factors for every matrix, made straight in the packed format: no files."""
    rng = np.random.default_rng(seed)
    return LoraAdapter(
        {
            (layer, name): LoraFactors(
                random_packed(format, rank, columns, rng, columns**-0.5), random_packed(format, rows, rank, rng, 0.5)
            )
            for layer in range(config.num_hidden_layers)
            for name, (rows, columns) in matrix_shapes(config).items()
        }
    )


def drawn_prefix(config: ModelConfig, seed: int, num_virtual: int) -> PrefixAdapter:
    """Random keys and values of virtual tokens, made in memory."""
    shape = config.num_hidden_layers, num_virtual, config.num_key_value_heads, config.head_dim
    keys, values = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return PrefixAdapter(keys, values)


def random_adapter(folder: Path, config: ModelConfig, seed: int = 0, **options: Any) -> LoraAdapter:
    """A loaded adapter with random factors for every matrix, or for `targets`."""
    targets = options.pop("targets", TARGETS)
    path = write_adapter(folder / f"adapter-{seed}", factors(config, seed, targets, **options), settings(targets))
    return read_adapter(path, config, "glm", get_kernels(), format="fp32", max_nbytes=1 << 30, layers=())
