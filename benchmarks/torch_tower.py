"""GLM-4V's vision tower in torch with random weights, as a peer: seconds for one picture, as JSON.

    PYTHON_WITH_TORCH benchmarks/torch_tower.py bfloat16 --layers 63

It is the tower that `glm4 finetune` trains, from the sources beside this folder: torch and NumPy are enough. Its
attention is fused (`scaled_dot_product_attention`) and never holds the whole matrix of scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from glm4.model.shapes import SHAPES
from glm4.training.vision.tower import Tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--layers", type=int, default=63)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    shape = SHAPES["glm-4v-9b"]
    assert shape.vision is not None
    vision = replace(shape.vision, num_hidden_layers=args.layers)
    with torch.device("meta"):
        tower = Tower(replace(shape, vision=vision)).to(dtype)
    tower = tower.to_empty(device="cpu")
    with torch.inference_mode():
        for parameter in tower.parameters():
            parameter.uniform_(-0.02, 0.02)
        pixels = torch.randint(0, 256, (1, vision.image_size, vision.image_size, 3), dtype=torch.uint8)
        first = tower.transformer["layers"][0]
        first(torch.zeros(1, vision.num_positions, vision.hidden_size, dtype=dtype))  # creates what is created once
        start = time.perf_counter()
        rows = tower(pixels)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "rows": rows.shape[1], "version": torch.__version__}))


if __name__ == "__main__":
    main()
