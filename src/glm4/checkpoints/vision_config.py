"""`vision_config` of a config.json, as glm-4v-9b has it: read, checked and written."""

from __future__ import annotations

from typing import Any

from glm4.checkpoints.config_fields import Fields
from glm4.errors import CheckpointError, UnsupportedModelError
from glm4.model.config import VisionConfig
from glm4.prompt import ImageLayout

_MAX_SIDE = 4096  # pixels
_MAX_HEAD = 1024  # as in the text model
_MAX_GRID = 128  # patches of each side: 4 times as many rows of attention as any published model has


def read_vision_config(fields: Fields) -> VisionConfig | None:
    """The tower that a configuration describes; None if it describes none.

    Raises:
        CheckpointError: a key is missing, out of range, or contradicts another one.
        UnsupportedModelError: a tower of another kind.
    """
    if not fields.has("vision_config"):
        return None
    inner = fields.inner("vision_config")
    act = inner.text("hidden_act", default="gelu")
    if act != "gelu":
        raise UnsupportedModelError(f"{inner.where}: hidden_act is {act[:80]!r}, which this build does not implement")
    config = VisionConfig(
        num_hidden_layers=inner.integer("num_hidden_layers", 1, 256),
        hidden_size=inner.integer("hidden_size", 1, 16384),
        num_attention_heads=inner.integer("num_heads", 1, 256),
        intermediate_size=inner.integer("intermediate_size", 1, 1 << 17),
        image_size=inner.integer("image_size", 2, _MAX_SIDE),
        patch_size=inner.integer("patch_size", 1, 256),
        layer_norm_eps=inner.number("layer_norm_eps", 0.0, 0.1, default=1e-6),
        scaling_factor=inner.number("scaling_factor", 1e-3, 1e6),
        begin_id=fields.integer("boi_token_id", 0, 1 << 20),
        end_id=fields.integer("eoi_token_id", 0, 1 << 20),
        in_channels=inner.integer("in_channels", 3, 3),
    )
    positions = inner.integer("num_positions", 1, _MAX_GRID**2 + 1, default=config.num_positions)
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{inner.where}: hidden_size {config.hidden_size} is not a multiple of num_heads "
            f"{config.num_attention_heads}"
        )
    if config.head_dim > _MAX_HEAD:
        raise CheckpointError(
            f"{inner.where}: hidden_size {config.hidden_size} makes {config.num_attention_heads} heads (num_heads) of "
            f"{config.head_dim} channels; at most {_MAX_HEAD} are supported"
        )
    if config.image_size % config.patch_size or config.grid % 2 or not 2 <= config.grid <= _MAX_GRID:
        raise CheckpointError(
            f"{inner.where}: image_size {config.image_size} must be an even number of patches of {config.patch_size} "
            f"pixels, at most {_MAX_GRID}"
        )
    if positions != config.num_positions:
        raise CheckpointError(
            f"{inner.where}: num_positions is {positions}; {config.grid} x {config.grid} patches and the class "
            f"embedding are {config.num_positions}"
        )
    return config


def image_layout(config: VisionConfig | None) -> ImageLayout | None:
    """How a picture stands in prompts; None for a model without a tower."""
    if config is None:
        return None
    return ImageLayout(config.image_size, config.num_rows, config.begin_id, config.end_id)


def vision_settings(config: VisionConfig) -> dict[str, Any]:
    """The keys of a config.json that `read_vision_config` reads."""
    return {
        "vision_config": {
            "num_hidden_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "num_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "num_positions": config.num_positions,
            "in_channels": config.in_channels,
            "layer_norm_eps": config.layer_norm_eps,
            "hidden_act": "gelu",
            "scaling_factor": config.scaling_factor,
            "dropout_prob": 0.0,  # the original code reads it
        },
        "boi_token_id": config.begin_id,
        "eoi_token_id": config.end_id,
    }
