"""From a checkpoint in glm-4v-9b's layout to `VisionGlmForCausalLM`, one tensor at a time."""

from __future__ import annotations

from typing import cast

import torch
import transformers

from glm4.backends.transformers.device import TORCH_DTYPES
from glm4.backends.transformers.weights import Progress, fill_model
from glm4.checkpoints.chatglm_layout import chatglm_name
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import HfClass, HfTensor, class_config, class_tensors, text_class
from glm4.model.config import ModelConfig
from glm4.model.tensors import VISION_PART, file_shape, model_tensors
from glm4.training.vision.model import VisionGlmForCausalLM

FILE_PREFIX, PREFIX = "transformer.vision.", "model.vision."
"""What precedes the names of the tower's tensors: in files, and in the model."""


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: str, progress: Progress | None = None
) -> VisionGlmForCausalLM:
    """The checkpoint's model, in evaluation mode and without gradients.

    Args:
        dtype: "fp32" or "bf16".
        progress: called with ("loading", done, total) in bytes.

    Raises:
        InvalidRequestError: a packed checkpoint.
        TensorError: tensors are missing, left over or misshapen, raised before any data is read.
    """
    cls = text_class(checkpoint)
    checkpoint.check()
    tensors = vision_model_tensors(cls, checkpoint.config)
    empty = empty_vision_model(cls, checkpoint.config, dtype, device)
    return cast("VisionGlmForCausalLM", fill_model(empty, checkpoint, tensors, device, dtype, progress))


def empty_vision_model(cls: HfClass, config: ModelConfig, dtype: str, device: torch.device) -> VisionGlmForCausalLM:
    """The model without memory for its parameters."""
    settings = class_config(cls, config, str(TORCH_DTYPES[dtype]).removeprefix("torch."))
    settings.pop("model_type")
    text = transformers.GlmConfig(**settings)
    with torch.device("meta"):
        model = VisionGlmForCausalLM(text, config)
    # Its frequencies are computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(text).to(device)
    return cast("VisionGlmForCausalLM", model.eval())


def vision_model_tensors(cls: HfClass, config: ModelConfig) -> list[HfTensor]:
    """The tensors of text model, tower and projector under the model's names."""
    found = list(class_tensors(cls, config))
    for name, tensor in model_tensors(config).items():
        if tensor.row.part == VISION_PART:
            to = PREFIX + chatglm_name(tensor).removeprefix(FILE_PREFIX)
            found.append(HfTensor(to, name, 0, tensor.shape[0], file_shape(tensor, config), rotary=False))
    return found
