"""The `vision_config` of glm-4v-9b's config.json → `VisionConfig`, and what the text side needs of it."""

from __future__ import annotations

from glm4.checkpoints.config_fields import Fields
from glm4.errors import CheckpointError, UnsupportedModelError
from glm4.model.config import VisionConfig
from glm4.prompt import ImageLayout

_MAX_IMAGE_SIZE = 8192
_MAX_TOKEN_ID = 1 << 20
_ACTIVATION = "gelu"  # in the erf form; other names mean other functions


def read_vision_config(fields: Fields) -> VisionConfig | None:
    """The tower of a model that sees; None for a text model.

    Args:
        fields: the whole configuration: the ids of the begin and end tokens stand beside `vision_config`.

    Raises:
        CheckpointError: a key is missing or its value is invalid.
        UnsupportedModelError: an option that is not implemented.
    """
    if not fields.has("vision_config"):
        return None
    vision = fields.inner("vision_config")
    activation = vision.text("hidden_act", _ACTIVATION)
    if activation != _ACTIVATION:
        raise UnsupportedModelError(f"{vision.where}: hidden_act is {activation!r}; this build runs {_ACTIVATION!r}")
    config = VisionConfig(
        num_hidden_layers=vision.integer("num_hidden_layers", 1, 1024),
        hidden_size=vision.integer("hidden_size", 1, 65536),
        num_attention_heads=vision.integer("num_heads", 1, 1024),
        intermediate_size=vision.integer("intermediate_size", 1, 1 << 18),
        image_size=vision.integer("image_size", 2, _MAX_IMAGE_SIZE),
        patch_size=vision.integer("patch_size", 1, _MAX_IMAGE_SIZE),
        layer_norm_eps=vision.number("layer_norm_eps", 0.0, 0.1),
        scaling_factor=vision.number("scaling_factor", 1e-3, 1e6),
        begin_id=fields.integer("boi_token_id", 0, _MAX_TOKEN_ID),
        end_id=fields.integer("eoi_token_id", 0, _MAX_TOKEN_ID),
        in_channels=vision.integer("in_channels", 3, 3),
    )
    _check(config, vision)
    return config


def _check(config: VisionConfig, vision: Fields) -> None:
    """The checks that need several values."""
    where = vision.where
    if config.image_size % config.patch_size or config.grid % 2:
        raise CheckpointError(
            f"{where}: a picture of {config.image_size} pixels in patches of {config.patch_size}: each side must be an"
            " even number of patches"
        )
    vision.integer("num_positions", config.num_positions, config.num_positions)
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{where}: hidden_size {config.hidden_size} cannot be shared among {config.num_attention_heads} heads"
        )
    if config.begin_id == config.end_id:
        raise CheckpointError(f"{where}: boi_token_id and eoi_token_id are the same token")


def image_layout(vision: VisionConfig | None) -> ImageLayout | None:
    """How a picture stands in prompts; None for a text model."""
    if vision is None:
        return None
    return ImageLayout(vision.image_size, vision.num_rows, vision.begin_id, vision.end_id)
