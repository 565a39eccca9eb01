"""GLM-4V's eyes in torch: the EVA2-CLIP tower and the projector, under the module names of glm-4v-9b's own file.

Needs torch alone. `glm4.model.vision` has the formulas; its golden files were recorded from this module.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from glm4.model.config import ModelConfig, VisionConfig
from glm4.model.vision import PIXEL_MEAN, PIXEL_STD


class PatchEmbedding(nn.Module):
    """Normalized pixels [N, 3, S, S] to rows [N, positions, C], the class embedding first."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.proj(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_embedding.expand(len(x), 1, -1), x], 1) + self.position_embedding.weight


class Attention(nn.Module):
    """Every row sees every row; no positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, config.qkv_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, positions, C] to the same."""
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, positions, C] to the same."""
        return self.fc2(functional.gelu(self.fc1(x)))


class TowerLayer(nn.Module):
    """The norms follow attention and MLP, inside the residual branches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, positions, C] to the same."""
        x = x + self.input_layernorm(self.attention(x))
        return x + self.post_attention_layernorm(self.mlp(x))


class Projector(nn.Module):
    """From merged patches to rows of the text model, [N, patches / 4, H]; computes in the type of its own weights."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(hidden, hidden, bias=False)
        self.norm1 = nn.LayerNorm(hidden)
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(hidden, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = functional.gelu(self.norm1(self.linear_proj(x.to(self.norm1.weight.dtype))))
        return self.dense_4h_to_h(functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


class Tower(nn.Module):
    """Pictures to rows of the text model.

    Attributes:
        gradient_checkpointing: layers are computed again in the backward pass; transformers sets it by that name.
    """

    def __init__(self, config: ModelConfig) -> None:
        """For the tower of `config`; ValueError for a text model."""
        super().__init__()
        if config.vision is None:
            raise ValueError("the model has no vision tower")
        self.config = vision = config.vision
        self.patch_embedding = PatchEmbedding(vision)
        layers = nn.ModuleList(TowerLayer(vision) for _ in range(vision.num_hidden_layers))
        self.transformer = nn.ModuleDict({"layers": layers})
        self.conv = nn.Conv2d(vision.hidden_size, config.hidden_size, 2, 2)
        self.linear_proj = Projector(config.hidden_size, config.intermediate_size)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.gradient_checkpointing = False

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, S, S, 3] of 0 to 255, uint8 or float, to [N, num_rows, H]: begin, patches, end."""
        weight = self.patch_embedding.proj.weight
        x = self.patch_embedding(normalized(pixels.to(weight.device)).to(weight.dtype))
        for layer in self.transformer["layers"]:
            x = self._through(layer, x)
        grid = self.config.grid
        x = self.conv(x[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)))
        x = self.linear_proj(x.flatten(2).transpose(1, 2))
        begin, end = (edge.expand(len(x), -1, -1).to(x.dtype) for edge in (self.boi, self.eoi))
        return torch.cat([begin, x, end], 1) / self.config.scaling_factor

    def _through(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(x)
        if not (x.requires_grad or any(value.requires_grad for value in layer.parameters())):
            return layer(x)  # frozen: autograd keeps nothing of it
        # The other kind of checkpoint has no gradients for a layer whose input needs none: the first one's.
        return checkpoint(layer, x, use_reentrant=False)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [N, S, S, 3] of 0 to 255 as the tower takes them: float32 [N, 3, S, S]."""
    mean, std = (torch.from_numpy(row).to(pixels.device) for row in (PIXEL_MEAN, PIXEL_STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
