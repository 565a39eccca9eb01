"""Which parts of GLM-4V are trained."""

from __future__ import annotations

from glm4.training.config import TrainingConfig
from glm4.training.vision.loading import PREFIX

ALL_LINEAR = "all-linear"
TEXT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
TOWER = ("attention.query_key_value", "attention.dense", "mlp.fc1", "mlp.fc2")
PROJECTOR = (
    "linear_proj.linear_proj",
    "linear_proj.gate_proj",
    "linear_proj.dense_h_to_4h",
    "linear_proj.dense_4h_to_h",
)
"""Ends of names of matrices; no other module of the model has such a name."""


def lora_targets(config: TrainingConfig) -> tuple[list[str], list[str] | None]:
    """PEFT's `target_modules` and `modules_to_save`."""
    wanted = config.lora.target_modules
    targets = list(TEXT if wanted == (ALL_LINEAR,) else wanted)
    if config.train_projector == "lora":
        targets += PROJECTOR
    if config.train_vision:
        targets += TOWER
    return targets, ["vision.linear_proj"] if config.train_projector == "full" else None


def stays_frozen(name: str, config: TrainingConfig) -> bool:
    """Whether a parameter belongs to a part of tower or projector that methods without an adapter leave as it is."""
    if name.startswith(PREFIX + "linear_proj."):
        return config.train_projector == "none"
    return name.startswith(PREFIX) and not config.train_vision
