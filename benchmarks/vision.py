"""One picture through GLM-4V's vision tower with random weights, beside torch; and to the first token of the 9B model.

    python benchmarks/vision.py --torch-python TORCH/bin/python                      # the whole tower, once per side
    python benchmarks/vision.py --torch-python TORCH/bin/python --layers 6 --rounds 5  # some of its equal layers
    python benchmarks/vision.py --whole int8 int4         # tower, prompt, first token; then a second question

Every side is a process of its own, in turn; peak memory is the process's. The tower alone includes patches, merging and
projector. torch keeps its weights in bfloat16 or float32 and computes in them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import harness
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.engine.protocol import GenerationRequest
from glm4.first_token import time_to_first_token
from glm4.kernels import get_kernels
from glm4.loading.weights import random_tensors
from glm4.model.config import ModelConfig
from glm4.model.layers import ModelWeights
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.model.vision import PIECE_ROWS, VisionTower
from glm4.prompt import MediaSpan, Prompt
from glm4.sampling_params import SamplingParams

OURS = ("bf16", "int8", "int4")
TORCH = {"torch bf16": "bfloat16", "torch fp32": "float32"}
SHAPE = SHAPES["glm-4v-9b"]
assert SHAPE.vision is not None
VISION = SHAPE.vision


def shape(layers: int) -> ModelConfig:
    return replace(SHAPE, vision=replace(VISION, num_hidden_layers=layers))


def picture(seed: int = 0) -> np.ndarray:
    side = VISION.image_size
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def run_tower(dtype: str, layers: int, threads: int) -> None:
    """The process that is measured: one picture through the tower; prints seconds."""
    config, kernels = shape(layers), get_kernels("native")
    kernels.set_num_threads(threads)
    weights = ModelWeights(random_tensors(config, PRECISIONS[dtype], prefix="vision.")).vision
    assert weights is not None
    tower, pixels = VisionTower(config, weights, kernels), picture()
    tower.start(pixels).advance(1)  # creates what is created once
    start = time.perf_counter()
    encoding = tower.start(pixels)
    while encoding.result is None:
        encoding.advance(PIECE_ROWS)
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(encoding.result)}))


def run_whole(dtype: str, threads: int) -> None:
    """The process that is measured: two questions about one picture to the 9B model; prints seconds to first tokens."""
    options = LocalOptions(dtype=dtype, max_model_len=2048, max_num_seqs=1, num_threads=threads)
    backend = LocalBackend.random(SHAPE, options)
    pixels, rng = {"digest": picture()}, np.random.default_rng(1)
    offsets = (0, *[1] * (VISION.num_rows - 2), 2)
    span = MediaSpan(4, VISION.num_rows, "image", "digest", offsets)
    before, rows = rng.integers(0, 1000, 4).tolist(), [0] * VISION.num_rows
    seconds = []
    for index in range(2):
        question = rng.integers(0, 1000, 16).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        start = time.perf_counter()
        backend.add_request(GenerationRequest(str(index), Prompt(before + rows + question, (span,), pixels), params))
        while backend.has_unfinished_requests():
            backend.step()
        seconds.append(time.perf_counter() - start)
    estimate = time_to_first_token(SHAPE, PRECISIONS[dtype], backend.model.kernels)
    assert estimate is not None
    print(json.dumps({"first": seconds[0], "second": seconds[1], "planned": estimate.total}))


def ask(command: list[str]) -> dict[str, Any]:
    """One round of one side: what it prints, and its peak memory in GB."""
    done = harness.finish(command)
    return {**json.loads(done.output.splitlines()[-1]), "peak": done.peak_nbytes / 1e9}


def compare_towers(args: argparse.Namespace) -> tuple[list[str], list[list[object]]]:
    me, common = [sys.executable, str(Path(__file__))], ["--layers", str(args.layers), "--threads", str(args.threads)]
    sides = {f"ours, {dtype}": [*me, "--run-tower", dtype, *common] for dtype in args.dtypes}
    if args.torch_python is not None:
        peer = [str(args.torch_python), str(Path(__file__).with_name("torch_tower.py"))]
        sides |= {name: [*peer, TORCH[name], *common] for name in args.peers}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name, command in sides.items():
            harness.progress(f"round {number + 1} of {args.rounds}: {name}")
            found[name].append(ask(command))
    harness.progress("")
    seconds = {name: [one["seconds"] for one in rounds] for name, rounds in found.items()}
    peers = [name for name in sides if name in TORCH]
    rows: list[list[object]] = []
    for name in sides:
        ratios = [_ratio(seconds[peer], seconds[name]) if name != peer else None for peer in peers]
        peak = statistics.median(one["peak"] for one in found[name])
        rows.append([name, statistics.median(seconds[name]), peak, *ratios])
    return ["side", "seconds", "peak memory, GB", *(f"times as fast as {peer}" for peer in peers)], rows


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Median of the rounds' own ratios: what slows the machine slows both sides of a round."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def compare_questions(args: argparse.Namespace) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for dtype in args.whole:
        harness.progress(f"the whole model in {dtype}")
        me = [sys.executable, str(Path(__file__)), "--run-whole", dtype, "--threads", str(args.threads)]
        found = [ask(me) for _ in range(args.rounds)]
        first, second, planned, peak = (
            statistics.median(one[key] for one in found) for key in ("first", "second", "planned", "peak")
        )
        rows.append([dtype, first, second, f"{100 * second / first:.1f} %", planned / first, peak])
    harness.progress("")
    titles = ["9B model", "first token, s", "of a second question, s", "share", "planned / measured", "peak memory, GB"]
    return titles, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path, help="a Python with torch")
    parser.add_argument("--dtypes", nargs="*", choices=OURS, default=list(OURS))
    parser.add_argument("--peers", nargs="*", choices=list(TORCH), default=list(TORCH))
    parser.add_argument("--layers", type=int, default=VISION.num_hidden_layers)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--whole", nargs="*", choices=("int8", "int4"), help="measure the whole 9B model instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run-tower", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--run-whole", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_tower:
        return run_tower(args.run_tower, args.layers, args.threads)
    if args.run_whole:
        return run_whole(args.run_whole, args.threads)
    facts = harness.facts(args.rounds)
    titles, rows = compare_towers(args) if args.whole is None else compare_questions(args)
    if args.json:
        print(json.dumps({"facts": facts, "rows": [dict(zip(titles, row, strict=True)) for row in rows]}, indent=2))
        return None
    print(harness.bullets(facts) + "\n\n" + harness.table(titles, rows))
    return None


if __name__ == "__main__":
    main()
