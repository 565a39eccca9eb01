"""Options that change a model's arithmetic and are not implemented: each is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from glm4.errors import UnsupportedModelError

# key -> values that mean "off" or "as implemented here"; anything else is refused. A JSON null is always "off".
_Neutral = Mapping[str, tuple[Any, ...]]

_COMMON: _Neutral = {
    "sliding_window_pattern": (),
    "num_experts": (0,),
    "n_routed_experts": (0,),
    "num_local_experts": (0,),
    "num_nextn_predict_layers": (0,),
    "cross_attention_layers": ([],),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}

_CHATGLM: _Neutral = {
    **_COMMON,
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "rmsnorm": (True,),
    "post_layer_norm": (True,),
    "interleaved_qkv": (False,),
    "position_encoding_2d": (False,),
    "pre_seq_len": (0,),
    "prefix_projection": (False,),
    "quantization_bit": (0,),
    "rope_scaling": (),
    "use_sliding_window": (False,),
    "sliding_window": (),
}

_HUGGING_FACE: _Neutral = {
    **_COMMON,
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (0, 0.0),
    "final_logit_softcapping": (0, 0.0),
    "rope_interleave": (True,),
    "no_rope_layers": ([],),
}

_PLAIN_ROPE = ("default", "none")

# Keys "<architecture>.<key>" that config_reader reads.
_GGUF_READ = frozenset(
    (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
    )
)
# Other keys that may appear in a supported file: None allows any value, otherwise the values that change nothing.
_GGUF_NEUTRAL: Mapping[str, tuple[Any, ...] | None] = {
    "vocab_size": None,  # the embedding's rows determine it
    "tensor_data_layout": None,  # how llama files were permuted; converters write only one value
    "rope.scaling.type": _PLAIN_ROPE,
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.original_context_length": None,  # has no effect without a scaling type
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (0.0, 1.0),
    "attention.causal": (True,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
}
_GGUF_OFF: tuple[Any, ...] = (0, 0.0, False, "", [])


def refuse_chatglm_options(data: Mapping[str, Any], where: str) -> None:
    """Refuses what a ChatGLM config.json requests beyond the GLM-4 text model.

    Raises:
        UnsupportedModelError: naming the key.
    """
    _refuse_vision(data, where)
    _refuse_quantized(data, where)
    _refuse_table(data, _CHATGLM, where)


def refuse_hf_options(data: Mapping[str, Any], where: str) -> None:
    """Refuses what a Hugging Face config.json requests beyond the GLM-4 text model.

    Raises:
        UnsupportedModelError: naming the key.
    """
    _refuse_vision(data, where)
    _refuse_quantized(data, where)
    _refuse_table(data, _HUGGING_FACE, where)
    # A window only counts where it is enabled: files give its size together with use_sliding_window false.
    if data.get("sliding_window") is not None and data.get("use_sliding_window") is not False:
        raise _unsupported(where, "sliding_window", data["sliding_window"])
    layer_types = data.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(item != "full_attention" for item in layer_types)
    ):
        raise _unsupported(where, "layer_types", layer_types)
    for key in ("rope_scaling", "rope_parameters"):
        _refuse_rope_scaling(data, key, where)


def _refuse_rope_scaling(data: Mapping[str, Any], key: str, where: str) -> None:
    rope = data.get(key)
    if not rope:
        return
    if not isinstance(rope, dict):
        raise _unsupported(where, key, rope)
    kind = rope.get("rope_type", rope.get("type"))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    harmless = rope.get("factor") in (None, 1, 1.0)
    if (kind is not None and kind not in _PLAIN_ROPE) or not harmless or rope.keys() - known - {"factor"}:
        raise _unsupported(where, key, rope)


def _refuse_vision(data: Mapping[str, Any], where: str) -> None:
    for key in ("vision_tower", "audio_config"):
        if data.get(key) is not None:
            raise UnsupportedModelError(
                f"{where} has {key}: this build runs text models and glm-4v-9b, whose vision part is another"
            )


def _refuse_quantized(data: Mapping[str, Any], where: str) -> None:
    for key in ("quantization_config", "compression_config"):
        settings = data.get(key)
        if settings is None:
            continue
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise UnsupportedModelError(
            f"{where}: the weights are already quantized ({key}: {_shown(method)}), a format this build does not read; "
            "use the original checkpoint (it is quantized while loading) or a GGUF file"
        )


def _refuse_table(data: Mapping[str, Any], table: _Neutral, where: str) -> None:
    for key, neutral in table.items():
        value = data.get(key)
        if value is not None and not _is_one_of(value, neutral):
            raise _unsupported(where, key, value)


def refuse_gguf_options(metadata: Mapping[str, Any], architecture: str, names: Collection[str], where: str) -> None:
    """Refuses what a GGUF file requests beyond the GLM-4 text model; an unknown architecture key counts as a request.

    Raises:
        UnsupportedModelError: naming the key.
    """
    prefix = f"{architecture}."
    for key, value in metadata.items():
        if not key.startswith(prefix):
            continue
        option = key[len(prefix) :]
        if option in _GGUF_READ or (option == "attention.value_length" and _same_head_size(metadata, prefix)):
            continue
        if option in _GGUF_NEUTRAL:
            neutral = _GGUF_NEUTRAL[option]
            if neutral is not None and not _is_one_of(value, neutral):
                raise _unsupported(where, key, value)
        elif not _is_one_of(value, _GGUF_OFF):
            raise _unsupported(where, key, value)
    if any(name.startswith("rope_freqs.") or name.startswith("rope_factors_") for name in names):
        raise UnsupportedModelError(f"{where} holds RoPE scaling factors (rope_freqs), which are not supported")


def _same_head_size(metadata: Mapping[str, Any], prefix: str) -> bool:
    """Whether values have as many channels as keys."""
    key_length = metadata.get(f"{prefix}attention.key_length")
    if key_length is None:
        hidden, heads = metadata.get(f"{prefix}embedding_length"), metadata.get(f"{prefix}attention.head_count")
        if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
            return True  # config_reader reports the missing key
        key_length = hidden // heads
    return bool(metadata.get(f"{prefix}attention.value_length") == key_length)


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Membership that does not treat 1 as True."""
    return any(isinstance(value, bool) == isinstance(item, bool) and value == item for item in allowed)


def _unsupported(where: str, key: str, value: Any) -> UnsupportedModelError:
    return UnsupportedModelError(f"{where}: {key} is {_shown(value)}, which this build does not implement")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
