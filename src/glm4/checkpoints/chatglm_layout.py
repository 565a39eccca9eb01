"""A checkpoint in the layout in which GLM-4-9B and GLM-4V-9B were first published: configuration and tensor names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import HfTensor, text_class
from glm4.checkpoints.vision_config import vision_settings
from glm4.errors import InvalidRequestError
from glm4.model.tensors import ModelTensor, file_shape, model_tensors

_ROPE_BASE = 10000.0


def chatglm_config(checkpoint: Checkpoint, dtype: str = "bfloat16") -> dict[str, Any]:
    """The contents of `config.json`.

    Args:
        dtype: torch's name of the weights' number format.

    Raises:
        InvalidRequestError: the layout cannot express this model, or it is packed and has no original weights.
    """
    text_class(checkpoint)
    config = checkpoint.config
    where = f"{checkpoint.path}: the ChatGLM layout"
    if checkpoint.model_type not in ("chatglm", "glm"):
        raise InvalidRequestError(
            f"{where} has no form for models of type {checkpoint.model_type}; --to hf has", param="to"
        )
    if config.partial_rotary_factor != 0.5:
        raise InvalidRequestError(
            f"{where} rotates half of every head, this model {config.partial_rotary_factor:g} of it; use --to hf",
            param="to",
        )
    ratio = config.rope_theta / _ROPE_BASE
    return {
        "architectures": ["ChatGLMModel" if config.vision is None else "ChatGLMForConditionalGeneration"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": config.attention_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": int(ratio) if ratio.is_integer() else ratio,
        "seq_length": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        **({} if config.vision is None else vision_settings(config.vision)),
    }


def chatglm_tensors(checkpoint: Checkpoint) -> Iterator[HfTensor]:
    """Every tensor of a checkpoint in that layout, in model order; each is one canonical tensor."""
    for name, tensor in model_tensors(checkpoint.config).items():
        shape = file_shape(tensor, checkpoint.config)
        yield HfTensor(chatglm_name(tensor), name, 0, tensor.shape[0], shape, tensor.row.rotary)


def chatglm_name(tensor: ModelTensor) -> str:
    """The name of a tensor in that layout."""
    return cast("str", tensor.row.sources["chatglm"]).replace("{i}", str(tensor.index))
