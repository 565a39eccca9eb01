"""GLM-4V in vLLM, with the positions it was trained with: begin b, every patch b + 1, end b + 2, then onwards.

vLLM's own class counts rows up by one. It has M-RoPE code that would not, but its configuration never switches that on,
and its processor does not supply the grid that the code asks for.

Pictures reach the model as uint8 and are normalized there, so that neither torchvision nor float32 copies are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature
from vllm.model_executor.models import glm4v
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs

from glm4.model.vision import PIXEL_MEAN, PIXEL_STD

_BICUBIC = 3  # Pillow's number


def picture_positions(num_rows: int, pictures: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Position of each row of a prompt: int64 [num_rows].

    Args:
        pictures: (first row, rows) of each picture: begin, patches, end.
    """
    steps = np.ones(num_rows, np.int64)
    for start, length in pictures:
        steps[start + 2 : start + length - 1] = 0  # patches after the first
    return np.cumsum(steps) - 1


class PictureInfo(glm4v.GLM4VProcessingInfo):  # type: ignore[misc]
    """What vLLM asks about GLM-4V's pictures."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """One picture, as it was trained, unless `limit_mm_per_prompt` asks for more."""
        return {"image": None if "image" in self.ctx.get_mm_config().limit_per_prompt else 1}


class PictureProcessor(glm4v.GLM4VMultiModalProcessor):  # type: ignore[misc]
    """Pictures to uint8 [3, size, size]. Prompts are token ids, so it works without a tokenizer, too."""

    requires_tokenizer = False

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        """The longest prompt, for vLLM's estimate of memory."""
        config = self.info.get_hf_config()
        marks = [config.boi_token_id, config.pad_token_id, config.eoi_token_id]
        pictures = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        items = self.info.parse_mm_data(pictures, validate=False)
        return ProcessorInputs(prompt=marks * mm_counts.get("image", 0), mm_data_items=items)

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        options = self.info.ctx.get_merged_mm_kwargs(hf_kwargs)
        if options:
            raise ValueError(f"GLM-4V's pictures have no options (mm_processor_kwargs), got {', '.join(options)}")
        size = self.info.get_hf_config().vision_config["image_size"]
        pixels = np.stack([_pixels(image, size) for image in hf_data["images"]])
        return BatchFeature({"pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()})


def _pixels(image: Any, size: int) -> NDArray[np.uint8]:
    """uint8 [size, size, 3] of an array of that kind, or of an image of Pillow, resized as the original does it."""
    if not isinstance(image, np.ndarray):
        if not hasattr(image, "resize") or not hasattr(image, "convert"):
            raise ValueError(f"a picture must be an image of Pillow or uint8 [{size}, {size}, 3], not {type(image)}")
        image = np.asarray(image.convert("RGB").resize((size, size), _BICUBIC))
    if image.shape != (size, size, 3) or image.dtype != np.uint8:
        raise ValueError(f"a picture as array must be uint8 [{size}, {size}, 3], not {image.dtype} {image.shape}")
    return np.asarray(image, np.uint8)


@MULTIMODAL_REGISTRY.register_processor(PictureProcessor, info=PictureInfo, dummy_inputs=glm4v.GLM4VDummyInputsBuilder)
class Glm4vForCausalLM(glm4v.GLM4VForCausalLM):  # type: ignore[misc]
    """vLLM's class with GLM-4V's positions and preprocessing."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if not vllm_config.model_config.uses_mrope:
            raise ValueError(
                "the configuration has no rope_parameters.mrope_section, so vLLM would not ask for GLM-4V's positions;"
                " do not override rope_parameters (hf_overrides)"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """The positions of a prompt, int64 [3, rows], equal on all axes; and those of later rows minus their index."""
        pictures = [(feature.mm_position.offset, feature.mm_position.length) for feature in mm_features]
        positions = picture_positions(len(input_tokens), pictures)
        following = int(positions[-1]) + 1 if len(positions) else 0
        return torch.from_numpy(np.tile(positions, (3, 1))), following - len(input_tokens)

    def _process_image_input(self, image_input: Any) -> torch.Tensor:
        pixels = image_input["data"]
        mean, std = (torch.tensor(row, device=pixels.device)[:, None, None] for row in (PIXEL_MEAN, PIXEL_STD))
        return self.transformer.vision((pixels.float() / 255 - mean) / std)  # which rounds to its own type

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **options: object,
    ) -> Any:
        """As vLLM's; `positions` are int64 [3, rows]."""
        return super().forward(input_ids, positions[0], intermediate_tensors, inputs_embeds, **options)
