"""A GGUF file in each dtype: how far from the file's own weights, how many bytes per token, how fast beside int8?

    python benchmarks/gguf_precisions.py --model starter-large --tokens 2048

The reference is the file itself, dequantised to float32: what is counted is only what *we* add to the error that the
file was made with. (`quality.py` asks another question: what a format costs a model that lies on no format's grid.)
"weights" rows compare dequantised weights in the float32 engine, "+a8" rows are what runs, with 8-bit activations. The
text is this repository's documents and code.

Decode and prefill take turns, one thread, in processor time, and are given as multiples of int8's speed (medians over
the rounds), so that they mean something on a shared machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.hub import resolve
from glm4.kernels import PackedWeight, get_kernels
from glm4.kernels.base import Kernels
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS, named_precision
from glm4.model.transformer import Transformer
from glm4.requests.processor import Processor
from quality import SEQUENCE, Contender, Score, score
from quality_model import assembled, hidden_states
from quality_text import documents

DTYPES = ("int8", "stored", "int4")
DECODE, PREFILL = speed.Question(64, speed.DECODE_TOKENS + 1), speed.Question(128)


def contenders(
    checkpoint: Checkpoint, dtype: str, ids: NDArray[np.int32], kernels: Kernels, weights: bool
) -> list[Contender]:
    """The model in a dtype as it runs, and (if asked for) its weights in float32."""
    model = load_model(checkpoint, named_precision(dtype, checkpoint.stored_precision), kernels)
    tensors = model.weights.tensors
    packed = [tensor for tensor in tensors.values() if isinstance(tensor, PackedWeight)]
    bits = 8 * sum(weight.nbytes for weight in packed) / sum(weight.rows * weight.cols for weight in packed)
    found = []
    if weights:
        exact = {
            name: kernels.pack("fp32", kernels.unpack(tensor)) if isinstance(tensor, PackedWeight) else tensor
            for name, tensor in tensors.items()
        }
        found.append(contender(f"{dtype} weights", bits, assembled(model.config, exact, kernels), ids))
    return [*found, contender(f"{dtype}+a8", bits, model, ids)]


def contender(name: str, bits: float, model: Transformer, ids: NDArray[np.int32]) -> Contender:
    return Contender.of(name, bits, model, hidden_states(model, ids, SEQUENCE))


def quality(checkpoint: Checkpoint, args: argparse.Namespace, log: Callable[[str], None]) -> list[Score]:
    kernels = get_kernels()
    ids = documents(Processor.load(checkpoint), args.tokens, SEQUENCE)
    log(f"reference: {len(ids)} tokens in float32")
    reference = contender("fp32", 32.0, load_model(checkpoint, PRECISIONS["fp32"], kernels), ids)
    found = []
    for dtype in args.dtypes:
        log(dtype)
        found += contenders(checkpoint, dtype, ids, kernels, args.weights)
    return score(reference, found, ids, kernels)


def times(checkpoint: Checkpoint, args: argparse.Namespace, log: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Bytes a decode step reads, and speed as a multiple of int8's, by dtype."""
    rng = np.random.default_rng(0)
    backends: dict[str, LocalBackend] = {}
    for dtype in args.dtypes:
        stored = checkpoint.stored_precision
        options = speed.backend_options(checkpoint.config, [DECODE, PREFILL], dtype, num_threads=1, stored=stored)
        backends[dtype] = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
        speed.fill(backends[dtype].engine.cache, DECODE.num_pages, rng)
        speed.run(backends[dtype], speed.Question(32, 4), rng)  # touches every page of the weights once
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(args.rounds):
        log(f"round {number + 1} of {args.rounds}")
        for dtype, backend in backends.items():
            for kind, run, question in (("decode", speed.run_filled, DECODE), ("prefill", speed.run, PREFILL)):
                start = time.process_time()
                run(backend, question, rng)
                seconds.setdefault((kind, dtype), []).append(time.process_time() - start)
    base = args.dtypes[0]
    return {
        dtype: {"bytes": speed.bytes_per_step(backend, DECODE)}
        | {kind: _ratio(seconds[kind, base], seconds[kind, dtype]) for kind in ("decode", "prefill")}
        for dtype, backend in backends.items()
    }


def _ratio(base: list[float], ours: list[float]) -> float:
    """Median of the rounds' ratios: what both sides met in one round weighs alike."""
    return statistics.median(b / o for b, o in zip(base, ours, strict=True))


def table(scores: list[Score], speeds: dict[str, dict[str, float]], base: str) -> str:
    lines = [
        f"| dtype | bits/weight | mean KLD | 99.9 % KLD | same top-1 | PPL ratio | GB per token | decode x {base} "
        f"| prefill x {base} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        found = speeds.get(s.format.removesuffix("+a8"))
        rates = (
            " | | |"
            if found is None
            else f" {found['bytes'] / 1e9:.3f} | {found['decode']:.2f} | {found['prefill']:.2f} |"
        )
        lines.append(
            f"| {s.format} | {s.bits_per_weight:.3f} | {s.kld:.5f} ± {s.kld_error:.5f} | {s.kld_99_9:.3f} "
            f"| {100 * s.top1:.2f} ± {100 * s.top1_error:.2f} % | {s.ppl_ratio:.4f} |{rates}"
        )
    return "\n".join(lines) + "\n"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A GGUF file in each dtype.")
    parser.add_argument("--model", default="starter-large", help="an installed name, or a GGUF file")
    parser.add_argument("--tokens", type=int, default=2048, help="about; 0 skips quality")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=sorted({*DTYPES, *PRECISIONS}))
    parser.add_argument("--weights", action="store_true", help="also the weights alone, in the float32 engine")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 skips it")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    log = partial(print, file=sys.stderr, flush=True)
    before = os.getloadavg()[0]
    with open_checkpoint(resolve(args.model)) as checkpoint:
        if "stored" in args.dtypes and checkpoint.stored_precision is None:
            args.dtypes.remove("stored")
            log("this file has no 4-bit tensors; without dtype stored")
        scores = quality(checkpoint, args, log) if args.tokens else []
        speeds = times(checkpoint, args, log) if args.rounds else {}
    if args.json:
        about: dict[str, Any] = {"model": args.model, "isa": get_kernels().isa(), "load_before": before}
        print(json.dumps({**about, "scores": [asdict(s) for s in scores], "speeds": speeds}, indent=2))
    else:
        print(table(scores, speeds, args.dtypes[0]) if scores else json.dumps(speeds, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
