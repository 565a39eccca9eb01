"""Prefixes (P-Tuning v2) on disk in PEFT's format, written without PEFT: for tests that need many, or broken ones.

That the format is PEFT's is shown by tests/model/test_prefix_parity.py, whose prefixes PEFT saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapter_files import write_adapter
from glm4.loading.adapters import read_prefix
from glm4.model.config import ModelConfig
from glm4.model.prefix import PrefixAdapter
from golden_models import Tensors


def prefix_settings(config: ModelConfig, num_virtual: int, **changes: Any) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it."""
    plain: dict[str, Any] = {
        "auto_mapping": None, "base_model_name_or_path": "somewhere/glm-4-9b-chat-hf", "encoder_hidden_size": None,
        "inference_mode": True, "init_weights": None, "modules_to_save": None,
        "num_attention_heads": config.num_key_value_heads, "num_layers": config.num_hidden_layers,
        "num_transformer_submodules": 1, "num_virtual_tokens": num_virtual, "peft_type": "PREFIX_TUNING",
        "peft_version": "0.21.0", "prefix_projection": False, "revision": None, "task_type": "CAUSAL_LM",
        "token_dim": config.key_value_size,
    }  # fmt: skip
    return plain | changes


def prefix_tensors(config: ModelConfig, num_virtual: int, seed: int = 0, scale: float = 1.0) -> Tensors:
    """A random prefix under PEFT's name."""
    shape = num_virtual, config.num_hidden_layers * 2 * config.key_value_size
    drawn = scale * np.random.default_rng(seed).standard_normal(shape)
    return {"prompt_embeddings": drawn.astype(np.float32)}


def write_prefix(folder: Path, config: ModelConfig, num_virtual: int, seed: int = 0, scale: float = 1.0) -> Path:
    """A folder with a random prefix."""
    tensors = prefix_tensors(config, num_virtual, seed, scale)
    return write_adapter(folder, tensors, prefix_settings(config, num_virtual))


def random_prefix(
    folder: Path, config: ModelConfig, num_virtual: int, seed: int = 0, scale: float = 1.0
) -> PrefixAdapter:
    """A loaded random prefix."""
    path = write_prefix(folder / f"prefix-{num_virtual}-{seed}", config, num_virtual, seed, scale)
    return read_prefix(path, config, "glm", max_nbytes=1 << 30, max_model_len=config.max_position_embeddings)
