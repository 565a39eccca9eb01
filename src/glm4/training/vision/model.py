"""GLM-4V for training: transformers' GLM with the tower inside, so that its parts have the names that PEFT writes.

The text model's modules are those of `GlmForCausalLM` (`model.layers.…`, `lm_head`), the tower is `model.vision`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GlmConfig, GlmForCausalLM, GlmModel

from glm4.model.config import ModelConfig
from glm4.training.vision.tower import Tower


class VisionGlmModel(GlmModel):
    """The layers, fed with rows of pictures in the places of their ids."""

    def __init__(self, config: GlmConfig, shape: ModelConfig) -> None:
        super().__init__(config)
        self.vision = Tower(shape)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        picture_places: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `GlmModel`'s.

        Args:
            position_ids: int64 [B, T]; all patches of a picture have the same (`batches.picture_positions`).
            attention_mask: without one, every row sees all that precede it in its sequence.
            pixel_values: uint8 [N, S, S, 3]: the pictures of the batch, N may be 0.
            picture_places: int64 [N, 2]: the sequence of each picture and its first row there.
        """
        if pixel_values is not None and picture_places is not None and inputs_embeds is None:
            inputs_embeds = self._with_pictures(self.embed_tokens(input_ids), pixel_values, picture_places)
            input_ids = None
            if attention_mask is None and past_key_values is None:
                # Without one, the class takes repeated positions for the beginning of another, packed sequence.
                attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _with_pictures(self, rows: torch.Tensor, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, H] with those of pictures put in their places."""
        if len(pixels) == 0:
            return rows + self._unseen(rows).to(rows.dtype) if self.training else rows
        seen = self.vision(pixels).to(rows.dtype)
        sequence = places[:, :1].expand(-1, seen.shape[1])
        row = places[:, 1:] + torch.arange(seen.shape[1], device=places.device)
        return rows.index_put((sequence, row), seen)

    def _unseen(self, rows: torch.Tensor) -> torch.Tensor:
        """A zero that gives what is trained of the tower gradients of zero, so that a step is the same step whether or
        not another batch of it has pictures; several processes even wait for each other's gradients.
        """
        if not _several_processes():
            trained = [value.sum() for value in self.vision.parameters() if value.requires_grad]
            return sum(trained, rows.new_zeros(())) * 0
        size = self.vision.config.image_size
        black = torch.zeros(1, size, size, self.vision.config.in_channels, dtype=torch.uint8, device=rows.device)
        return self.vision(black).sum() * 0


def _several_processes() -> bool:
    distributed = torch.distributed
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


class VisionGlmForCausalLM(GlmForCausalLM):
    """The model and its head. `forward` takes what `VisionGlmModel.forward` takes."""

    _no_split_modules = ("GlmDecoderLayer", "TowerLayer")

    def __init__(self, config: GlmConfig, shape: ModelConfig) -> None:
        """An empty model.

        Args:
            config: of the text model.
            shape: of both.
        """
        super().__init__(config)
        self.model = VisionGlmModel(config, shape)
