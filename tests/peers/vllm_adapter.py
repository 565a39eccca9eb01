"""A tiny LoRA adapter, for tests that would download one of a published model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RANK, HIDDEN, QUERY = 8, 64, 64


def write_adapter(folder: Path) -> Path:
    """Random factors for the query matrices of `tiny_glm`, in PEFT's format."""
    if folder.exists():
        return folder
    from golden_models import write_safetensors

    folder.mkdir(parents=True)
    rng = np.random.RandomState(len(folder.name))
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[name + "A.weight"] = rng.standard_normal((RANK, HIDDEN)).astype(np.float32)
        tensors[name + "B.weight"] = 0.1 * rng.standard_normal((QUERY, RANK)).astype(np.float32)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
