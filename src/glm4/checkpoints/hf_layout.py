"""Any text checkpoint as Hugging Face's classes have it: configuration, tensor names, and the rows of each tensor.

For what runs or writes that layout: `GlmForCausalLM` (ChatGLM checkpoints included), `Glm4ForCausalLM`,
`LlamaForCausalLM` and `Qwen2ForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint, split_rotary_rows
from glm4.errors import InvalidRequestError
from glm4.model.config import ModelConfig
from glm4.model.tensors import VISION_PART, ModelTensor, model_tensors


@dataclass(frozen=True)
class HfClass:
    """A class of transformers.

    Attributes:
        model_type: `model_type` of its configuration.
        name: of the class, for `architectures`.
        fused_gate_up: the MLP's first projection is one matrix, with the gate first.
        half_split: rotary pairs are channels i and i + rotary_dim / 2 of a head, instead of 2i and 2i + 1.
    """

    model_type: str
    name: str
    fused_gate_up: bool = True
    half_split: bool = False


_GLM = HfClass("glm", "GlmForCausalLM")
# By the model type of the checkpoint.
HF_CLASSES: Mapping[str, HfClass] = MappingProxyType(
    {
        "chatglm": _GLM,
        "glm": _GLM,
        "glm4": HfClass("glm4", "Glm4ForCausalLM"),
        "llama": HfClass("llama", "LlamaForCausalLM", fused_gate_up=False, half_split=True),
        "qwen2": HfClass("qwen2", "Qwen2ForCausalLM", fused_gate_up=False, half_split=True),
    }
)


@dataclass(frozen=True)
class HfTensor:
    """A tensor of that layout: rows start..stop-1 of a canonical one.

    Attributes:
        name: in the layout.
        canonical: name of the tensor that it is part of.
        shape: of this part.
        rotary: rows of queries and keys, whose order depends on the layout.
    """

    name: str
    canonical: str
    start: int
    stop: int
    shape: tuple[int, ...]
    rotary: bool


def hf_class(checkpoint: Checkpoint) -> HfClass:
    """The class that computes a checkpoint.

    Raises:
        InvalidRequestError: it sees pictures, or is packed and has no original weights.
    """
    if checkpoint.config.vision is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} sees pictures, and transformers has no class that computes it", param="model"
        )
    return text_class(checkpoint)


def text_class(checkpoint: Checkpoint) -> HfClass:
    """The class that computes a checkpoint's text model.

    Raises:
        InvalidRequestError: it is packed and has no original weights.
    """
    if checkpoint.packed is not None:
        raise InvalidRequestError(
            f"{checkpoint.path} is packed as {checkpoint.packed.precision.name} for this package's own engine; start "
            "from the original model",
            param="model",
        )
    return HF_CLASSES[checkpoint.model_type]


def hf_config(checkpoint: Checkpoint, dtype: str = "bfloat16") -> dict[str, Any]:
    """The contents of `config.json`, with the RoPE keys of transformers 4 (top level) and 5 (`rope_parameters`).

    Args:
        dtype: torch's name of the weights' number format.
    """
    return class_config(hf_class(checkpoint), checkpoint.config, dtype)


def class_config(cls: HfClass, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The same, for a model without its checkpoint."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    settings: dict[str, Any] = {
        "architectures": [cls.name],
        "model_type": cls.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if cls.fused_gate_up:  # the GLM classes rotate a part of each head; the others have no such key
        settings["partial_rotary_factor"] = config.partial_rotary_factor
        rope["partial_rotary_factor"] = config.partial_rotary_factor
    return settings


def hf_tensors(checkpoint: Checkpoint) -> Iterator[HfTensor]:
    """Every tensor of a checkpoint in that layout, in model order."""
    return class_tensors(hf_class(checkpoint), checkpoint.config)


def class_tensors(cls: HfClass, config: ModelConfig) -> Iterator[HfTensor]:
    """The same, for a model without its checkpoint; of a model that sees, the tensors of its text model."""
    for name, tensor in model_tensors(config).items():
        if tensor.row.part == VISION_PART:
            continue
        start = 0
        for file_name, rows in _names(tensor, cls, config).items():
            shape = (rows, *tensor.shape[1:])
            yield HfTensor(file_name, name, start, start + rows, shape, tensor.row.rotary and "v_proj" not in file_name)
            start += rows


def _names(tensor: ModelTensor, cls: HfClass, config: ModelConfig) -> dict[str, int]:
    """The parts of a canonical tensor, with the rows of each."""
    source = tensor.row.sources["hf"]
    if isinstance(source, tuple):  # gate and up, as one matrix or two
        source = source[0 if cls.fused_gate_up else 1]
    rows = {source: tensor.shape[0]} if isinstance(source, str) else {n: getattr(config, s) for n, s in source.items()}
    return {name.replace("{i}", str(tensor.index)): count for name, count in rows.items()}


def read_hf_rows(checkpoint: Checkpoint, tensor: HfTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows start..stop-1 of a tensor of that layout, as float32.

    Raises:
        TensorError: as `Checkpoint.load_rows`.
    """
    if not (tensor.rotary and text_class(checkpoint).half_split):
        return checkpoint.load_rows(tensor.canonical, tensor.start + start, tensor.start + stop)
    whole = checkpoint.load(tensor.canonical)  # rows change places within a head
    split_rotary_rows(whole, checkpoint.config)
    return whole[tensor.start + start : tensor.start + stop]
