"""P-Tuning v2: trained keys and values in front of those of every layer, in PEFT's format of prefix tuning.

PEFT hands the prefix to the model as a filled cache, which gradient checkpointing cannot recompute. Here each layer's
attention has its own part of the prefix, and puts it in front of its keys and values through the `update` that
attention of transformers calls on a cache. Whatever recomputes the layer recomputes that, too, and no code of the
models is replaced: two kinds of hooks do it. Positions and the attention mask are changed once, at the decoder's door.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from glm4.errors import CheckpointError, InvalidRequestError
from glm4.training.config import PrefixConfig, TrainingConfig

_WEIGHTS, _SETTINGS, _TENSOR = "adapter_model.safetensors", "adapter_config.json", "prompt_embeddings"
_FREQUENT_IDS = 10_000
"""Merges are learned most frequent first, so the first ids of a vocabulary are its common pieces."""


class Prefix(torch.nn.Module):
    """What all layers of a prefix share: its length, whether it is on, and for a projection the start of PEFT's MLP.

    Parameters are float32 whatever the model's are, as they are trained.
    """

    def __init__(self, num_tokens: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.on = True
        self.embedding = torch.nn.Embedding(num_tokens, width, dtype=torch.float32) if hidden_size else None
        self.dense = torch.nn.Linear(width, hidden_size, dtype=torch.float32) if hidden_size else None

    def forward(self) -> torch.Tensor:
        """Of a projection: float32 [P, hidden size]. Cheap enough for every layer to compute it anew."""
        if self.embedding is None or self.dense is None:
            raise RuntimeError("this prefix has no projection")
        return torch.tanh(self.dense(self.embedding.weight))


class LayerPrefix(torch.nn.Module):
    """The prefix of one layer: keys and values, float32 [P, 2, kv heads, head dim]."""

    def __init__(self, whole: Prefix, heads: int, head_dim: int) -> None:
        super().__init__()
        self.__dict__["whole"] = whole  # the decoder's submodule, not one of every layer
        self.shape = (whole.num_tokens, 2, heads, head_dim)
        if whole.dense is None:
            self.states = torch.nn.Parameter(torch.randn(self.shape, dtype=torch.float32))
        else:
            self.out = torch.nn.Linear(whole.dense.out_features, 2 * heads * head_dim, dtype=torch.float32)

    def forward(self) -> torch.Tensor:
        """The keys and values."""
        return self.states if self.whole.dense is None else self.out(self.whole()).view(self.shape)


def add_prefix(model: Any, config: TrainingConfig) -> Any:
    """The model with a new prefix; only that is trained.

    The prefix begins as the keys and values that the model itself computes for random common tokens, which disturbs
    it less than noise does. With a projection it begins as PEFT's.

    Args:
        model: GlmForCausalLM, Glm4ForCausalLM, Qwen2ForCausalLM or LlamaForCausalLM, on its device.

    Raises:
        InvalidRequestError: the model's attention is not full, or not computed by SDPA or eager code.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prefix = insert_prefix(model, config.prefix)
        ids = torch.randint(min(_FREQUENT_IDS, model.config.vocab_size), (prefix.num_tokens,))
    if prefix.dense is None:
        set_prefix(model, token_states(model, ids))
    return model


def insert_prefix(model: Any, config: PrefixConfig) -> Prefix:
    """Adds a prefix of random numbers to every layer, and freezes all else."""
    _check_attention(model)
    device = model.get_input_embeddings().weight.device
    heads, head_dim = model.config.num_key_value_heads, _head_dim(model)
    hidden_size = (config.hidden_size or model.config.hidden_size) if config.projection else 0
    model.requires_grad_(False)
    prefix = Prefix(config.num_virtual_tokens, heads * head_dim, hidden_size)
    model.base_model.prefix = prefix.to(device)
    model.base_model.register_forward_pre_hook(_make_room, with_kwargs=True)
    for attention in _attentions(model):
        attention.prefix = LayerPrefix(prefix, heads, head_dim).to(device)
        attention.register_forward_pre_hook(_put_in_front, with_kwargs=True)
    # Checkpointing of the reentrant kind finds gradients only if its input requires one.
    model.enable_input_require_grads()
    return prefix


@contextlib.contextmanager
def without_prefix(model: Any) -> Iterator[None]:
    """The model as it was, while the block runs."""
    prefix = model.base_model.prefix
    before, prefix.on = prefix.on, False
    try:
        yield
    finally:
        prefix.on = before


def prefix_states(model: Any) -> torch.Tensor:
    """The prefix as PEFT keeps it, on the CPU: float32 [P, layers * 2 * kv heads * head dim], a projection applied."""
    with torch.no_grad():
        return torch.cat([attention.prefix().flatten(1) for attention in _attentions(model)], 1).float().cpu()


def set_prefix(model: Any, states: torch.Tensor) -> None:
    """Gives a prefix without projection its numbers, in the shape of `prefix_states`."""
    attentions = list(_attentions(model))
    with torch.no_grad():
        for attention, layer in zip(attentions, states.chunk(len(attentions), 1), strict=True):
            attention.prefix.states.copy_(layer.reshape(attention.prefix.shape))


def token_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Keys and values of tokens int64 [P] at positions from 0, in the shape of `prefix_states`.

    With them as its prefix a model computes for a text what it computes without for these tokens and the text.
    """
    training = model.training
    model.eval()  # checkpointing would drop the cache
    try:
        with without_prefix(model), torch.no_grad():
            device = model.get_input_embeddings().weight.device
            cache = model.base_model(input_ids=ids[None].to(device), use_cache=True).past_key_values
    finally:
        model.train(training)
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]  # [2, heads, P, head dim]
    return torch.cat([pair.permute(2, 0, 1, 3).flatten(1) for pair in pairs], 1).float().cpu()


def save_prefix(model: Any, folder: Path, base: str) -> None:
    """Writes what PEFT, and we, load as a prefix: the projection applied and dropped.

    Args:
        base: name of the model it was trained for.
    """
    import peft
    from safetensors.torch import save_file

    heads = model.config.num_key_value_heads
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        num_virtual_tokens=model.base_model.prefix.num_tokens,
        token_dim=heads * _head_dim(model),
        num_transformer_submodules=1,
        num_attention_heads=heads,
        num_layers=model.config.num_hidden_layers,
        encoder_hidden_size=heads * _head_dim(model),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_TENSOR: prefix_states(model)}, folder / _WEIGHTS, {"format": "pt"})
    settings.save_pretrained(str(folder))


def load_prefix(model: Any, folder: Path) -> None:
    """Adds the prefix that PEFT or we have saved, to be used or trained on.

    Raises:
        CheckpointError: it is none, or one for a model of other sizes.
    """
    from safetensors.torch import load_file

    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    if settings.get("peft_type") != "PREFIX_TUNING":
        raise CheckpointError(f"{folder} is an adapter of type {settings.get('peft_type')}, not a prefix")
    states = load_file(folder / _WEIGHTS).get(_TENSOR)
    width = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * _head_dim(model)
    if states is None or states.dim() != 2 or states.shape[1] != width:
        found = "nothing" if states is None else list(states.shape)
        raise CheckpointError(f"{folder} is a prefix for another model: {found} where [tokens, {width}] is needed")
    insert_prefix(model, PrefixConfig(num_virtual_tokens=len(states)))
    set_prefix(model, states)


def _check_attention(model: Any) -> None:
    config = model.config
    if config._attn_implementation not in ("sdpa", "eager"):
        raise InvalidRequestError(
            f"method ptuning_v2 needs attention by SDPA, not {config._attn_implementation}, which gets no mask that"
            " leaves room for a prefix",
            param="method",
        )
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise InvalidRequestError(
            "method ptuning_v2 is for models all of whose layers see the whole text; train a LoRA", param="method"
        )


def _head_dim(model: Any) -> int:
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _attentions(model: Any) -> Iterator[Any]:
    for layer in model.base_model.layers:
        yield layer.self_attn


class _InFront:
    """What attention takes for a cache: it gives back keys and values with the prefix in front of them."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states  # [P, 2, heads, head dim]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.states.to(keys.dtype).permute(1, 2, 0, 3)[:, None].expand(-1, len(keys), -1, -1, -1)
        return torch.cat([states[0], keys], 2), torch.cat([states[1], values], 2)


def _put_in_front(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    if not attention.prefix.whole.on:
        return None
    return args, {**kwargs, "past_key_values": _InFront(attention.prefix())}


def _make_room(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Positions of the text begin after the prefix, which every token sees."""
    prefix: Prefix = decoder.prefix
    if not prefix.on:
        return None
    if kwargs.get("past_key_values") is not None or kwargs.get("use_cache"):
        raise ValueError("a model whose prefix is trained has no cache: pass use_cache=False")
    if args:
        kwargs, args = {**kwargs, "input_ids": args[0]}, args[1:]
    given = kwargs.get("inputs_embeds")
    inputs = kwargs["input_ids"] if given is None else given
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
    mask = _mask(positions, kwargs.get("attention_mask"), prefix.num_tokens)
    if decoder.config._attn_implementation == "eager":
        dtype = decoder.get_input_embeddings().weight.dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    room = {"position_ids": positions + prefix.num_tokens, "attention_mask": mask, "use_cache": False}
    return args, {**kwargs, **room}


def _mask(positions: torch.Tensor, attended: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
    """What each token sees: the prefix, and of its own sample the tokens up to itself. bool [B or 1, 1, T, P + T].

    Args:
        positions: int64 [B or 1, T], of packed samples if they begin anew and `attended` is None.
        attended: [B, T], 0 at padding.
    """
    length = positions.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril_()[None]
    if attended is not None:
        seen = seen & attended.bool()[:, None, :]
    else:
        samples = (positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1).cumsum(1)
        if samples.any():
            seen = seen & (samples[:, :, None] == samples[:, None, :])
    return torch.nn.functional.pad(seen, (num_tokens, 0), value=True)[:, None]
