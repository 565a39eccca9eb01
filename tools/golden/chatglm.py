"""The original ChatGLM module tree of GLM-4 in torch: fused linears under their own names.

transformers has no such class (the published one is code beside the weights). Adapters trained on it have its names and
row order, and it is the text half of GLM-4V. The logits are compared with transformers' own GLM before anything is
recorded.

Activations are [..., T, channels]: one sequence, or a batch of sequences of one length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import golden_models as gm


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, model: gm.TinyModel) -> None:
        super().__init__()
        self.model = model
        rows = model.query_size + 2 * model.key_value_size
        self.query_key_value = nn.Linear(model.hidden_size, rows, bias=model.attention_bias)
        self.dense = nn.Linear(model.query_size, model.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        m = self.model
        sizes = [m.query_size, m.key_value_size, m.key_value_size]
        parts = self.query_key_value(x).split(sizes, dim=-1)
        q, k, v = (part.reshape(*x.shape[:-1], -1, m.head_dim) for part in parts)
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        group = m.num_attention_heads // m.num_key_value_heads
        k, v = k.repeat_interleave(group, -2), v.repeat_interleave(group, -2)
        heads = functional.scaled_dot_product_attention(*(t.transpose(-3, -2) for t in (q, k, v)), is_causal=True)
        return self.dense(heads.transpose(-3, -2).flatten(-2))

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        rotary = self.model.rotary_dim
        frequencies = 1.0 / self.model.rope_theta ** (torch.arange(0, rotary, 2, dtype=torch.float32) / rotary)
        angles = (positions[..., None].float() * frequencies)[..., None, :]
        turned, rest = x[..., :rotary], x[..., rotary:]
        # Pairs stand side by side, or (original_rope: false) half of the rotated channels apart.
        shape = (2, rotary // 2) if self.model.half_split else (rotary // 2, 2)
        axis = -2 if self.model.half_split else -1
        first, second = turned.reshape(*turned.shape[:-1], *shape).unbind(axis)
        pair = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat([torch.stack(pair, axis).flatten(-2), rest], dim=-1)


class Mlp(nn.Module):
    def __init__(self, model: gm.TinyModel) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(model.hidden_size, 2 * model.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(model.intermediate_size, model.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        return self.dense_4h_to_h(functional.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, model: gm.TinyModel) -> None:
        super().__init__()
        self.input_layernorm = Norm(model.hidden_size, model.rms_norm_eps)
        self.self_attention = SelfAttention(model)
        self.post_attention_layernorm = Norm(model.hidden_size, model.rms_norm_eps)
        self.mlp = Mlp(model)

    def forward(self, h: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        h = h + self.self_attention(self.input_layernorm(h), positions)
        return h + self.mlp(self.post_attention_layernorm(h))


class ChatGLM(nn.Module):
    """ids [..., T] to logits [..., T, V]."""

    def __init__(self, model: gm.TinyModel) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({
            "embedding": nn.ModuleDict({"word_embeddings": nn.Embedding(model.vocab_size, model.hidden_size)}),
            "encoder": nn.ModuleDict({
                "layers": nn.ModuleList(Block(model) for _ in range(model.num_hidden_layers)),
                "final_layernorm": Norm(model.hidden_size, model.rms_norm_eps),
            }),
            "output_layer": nn.Linear(model.hidden_size, model.vocab_size, bias=False),
        })  # fmt: skip

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts: Any = self.transformer
        return self.run(parts["embedding"]["word_embeddings"](ids), torch.arange(ids.shape[-1]))

    def run(self, h: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [..., T, V] of input rows h [..., T, hidden] at `positions` [T] or [..., T]."""
        parts: Any = self.transformer
        for block in parts["encoder"]["layers"]:
            h = block(h, positions)
        return parts["output_layer"](parts["encoder"]["final_layernorm"](h))


def build(model: gm.TinyModel) -> ChatGLM:
    """The module with the tiny model's tensors, under the names and in the row order of its checkpoint file."""
    made = ChatGLM(model)
    tensors = gm.file_tensors(model, gm.draw(model))
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items() if "inv_freq" not in name}
    made.load_state_dict(state, strict=True)
    return made.float().eval()
