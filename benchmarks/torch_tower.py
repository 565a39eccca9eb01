"""GLM-4V's vision tower in torch with random weights, as a peer: seconds for one picture, as JSON.

    PYTHON_WITH_TORCH benchmarks/torch_tower.py bfloat16 --layers 63

Needs torch, not glm4. Fused attention (`scaled_dot_product_attention`), which never holds the whole matrix of scores.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, INNER, GRID, PATCH, HIDDEN, TEXT_INNER = 1792, 16, 15360, 80, 14, 4096, 13696


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, x: Any) -> Any:
        q, k, v = (part.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, WIDTH)
        x = x + self.norm1(self.o(mixed))
        return x + self.norm2(self.fc2(functional.gelu(self.fc1(x))))


class Tower(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first, self.positions = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Embedding(GRID * GRID + 1, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.merge = nn.Conv2d(WIDTH, HIDDEN, 2, 2)
        self.projector, self.norm = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.LayerNorm(HIDDEN)
        self.gate, self.up = (nn.Linear(HIDDEN, TEXT_INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(TEXT_INNER, HIDDEN, bias=False)

    def forward(self, pixels: Any) -> Any:
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.first, x], dim=1) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        x = self.merge(x[:, 1:].transpose(1, 2).reshape(1, WIDTH, GRID, GRID)).flatten(2).transpose(1, 2)
        x = functional.gelu(self.norm(self.projector(x)))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--layers", type=int, default=63)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    with torch.device("meta"):
        tower = Tower(args.layers).to(dtype)
    tower = tower.to_empty(device="cpu")
    with torch.inference_mode():
        for parameter in tower.parameters():
            parameter.uniform_(-0.02, 0.02)
        pixels = torch.rand(1, 3, GRID * PATCH, GRID * PATCH, dtype=dtype)
        tower.layers[0](torch.zeros(1, GRID * GRID + 1, WIDTH, dtype=dtype))  # creates what is created once
        start = time.perf_counter()
        rows = tower(pixels)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "rows": rows.shape[1], "version": torch.__version__}))


if __name__ == "__main__":
    main()
