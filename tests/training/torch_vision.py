"""Tiny GLM-4Vs in torch, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vision_models as vm
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.training.vision.batches import picture_positions
from glm4.training.vision.loading import load_vision_model
from glm4.training.vision.model import VisionGlmForCausalLM


def load(folder: Path, dtype: str = "fp32") -> VisionGlmForCausalLM:
    with open_checkpoint(folder) as checkpoint:
        return load_vision_model(checkpoint, torch.device("cpu"), dtype)


def tiny(folder: Path, name: str = "glm-4v", dtype: str = "fp32") -> VisionGlmForCausalLM:
    """A model of `vision_models`; its checkpoint is written into the folder."""
    return load(vm.write_vision_checkpoint(folder, vm.VISION_MODELS[name]), dtype)


def golden_inputs(name: str, pixels: NDArray[np.uint8], more: NDArray[np.int32]) -> dict[str, Any]:
    """What the recorded outputs belong to: text, a picture, text and further ids, as one sequence."""
    model = vm.VISION_MODELS[name]
    before, after = vm.draw_text(model)
    picture = [model.begin_of_image] + [model.end_of_text] * (model.num_rows - 2) + [model.end_of_image]
    ids = np.concatenate([before, picture, after, more])
    positions = picture_positions(len(ids), [len(before)], model.num_rows)
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "position_ids": torch.from_numpy(positions)[None],
        "pixel_values": torch.from_numpy(pixels)[None],
        "picture_places": torch.tensor([[0, len(before)]]),
        "use_cache": False,
    }
