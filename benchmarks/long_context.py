"""Whole-model decode over a long context: tokens/s and peak memory, without computing the context first.

    python benchmarks/long_context.py                    # GLM-4-9B int4; 2K, 32K and 128K; int8 and fp16 KV
    python benchmarks/long_context.py --contexts 131072 --kv-dtypes int8 --json
    python benchmarks/long_context.py --shape glm-4-9b-chat-1m --layers 12 --contexts 1048576 --kv-dtypes int8

Random weights in the model's shape, random keys and values put straight into the cache. Cache formats are measured one
after the other because they would not fit beside each other; medians over the tokens of a run. Peak memory is of the
process so far, so the order of the runs goes from small to large. --layers takes only some of the model's equal layers,
where all of them do not fit: their time and cache grow with their number, embedding and head stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from glm4.benchmark import fill
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, page_nbytes, pages_for
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.model.transformer import Transformer
from glm4.system.memory import available_memory


@dataclass(frozen=True)
class Result:
    """One run. `attention_share` is the part of a step spent in the attention kernel."""

    kv_dtype: str
    context: int
    kv_gb: float
    tokens_per_s: float
    attention_share: float
    peak_gb: float
    load_average: float

    def __str__(self) -> str:
        head = f"{self.kv_dtype:5} {self.context:8} {self.kv_gb:7.2f} {self.tokens_per_s:9.2f}"
        return f"{head} {self.attention_share:10.0%} {self.peak_gb:8.2f} {self.load_average:6.1f}"


class TimedKernels:
    """The kernels, with a clock on attention."""

    def __init__(self) -> None:
        self._kernels = get_kernels("native")
        self.attention_seconds = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._kernels, name)

    def paged_attention(self, *args: object) -> object:
        start = time.perf_counter()
        out = self._kernels.paged_attention(*args)  # type: ignore[arg-type]
        self.attention_seconds += time.perf_counter() - start
        return out


def decode(model: Transformer, kernels: TimedKernels, kv_dtype: str, context: int, tokens: int) -> Result:
    """The last `tokens` tokens of a context."""
    pages = pages_for(context)
    cache = KVCache(model.config, pages, kv_dtype)
    rng = np.random.default_rng(0)
    fill(cache, pages, rng)
    order = rng.permutation(cache.allocate(pages)).tolist()
    times, shares, token = [], [], 1
    for position in range(context - tokens, context):
        before, start = kernels.attention_seconds, time.perf_counter()
        batch = ForwardBatch.build([order], [position], [1])
        logits = model.logits(model.forward(np.array([token], np.int32), batch, cache))
        token = int(logits[0].argmax())
        times.append(time.perf_counter() - start)
        shares.append((kernels.attention_seconds - before) / times[-1])
    return Result(
        kv_dtype=kv_dtype,
        context=context,
        kv_gb=pages * page_nbytes(model.config, kv_dtype) / 1e9,
        tokens_per_s=1 / statistics.median(times[1:]),
        attention_share=statistics.median(shares[1:]),
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        load_average=os.getloadavg()[0],
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decode over long contexts.")
    parser.add_argument("--shape", default="glm-4-9b-chat", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, help="fewer than the shape has, where memory is short")
    parser.add_argument("--dtype", default="int4", choices=sorted(PRECISIONS))
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 32768, 131072])
    parser.add_argument("--kv-dtypes", nargs="+", default=["int8", "fp16"])
    parser.add_argument("--tokens", type=int, default=9, help="tokens per run")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    kernels = TimedKernels()
    if args.threads:
        kernels.set_num_threads(args.threads)  # type: ignore[operator]
    config = SHAPES[args.shape]
    config = replace(config, num_hidden_layers=args.layers or config.num_hidden_layers)
    model = random_model(config, PRECISIONS[args.dtype], kernels, 0)  # type: ignore[arg-type]
    if not args.json:
        weights = model.weights.nbytes / 1e9
        print(f"{args.shape}, {config.num_hidden_layers} layers, {args.dtype}: weights {weights:.2f} GB")
        print(
            f"{'cache':5} {'context':>8} {'KV GB':>7} {'tokens/s':>9} {'attention':>10} {'peak GB':>8} {'load':>6}",
            flush=True,
        )
    results = []
    for context in args.contexts:
        for kv_dtype in args.kv_dtypes:
            if pages_for(context) * page_nbytes(config, kv_dtype) > 0.95 * available_memory():
                print(f"{kv_dtype} {context}: left out, not enough free memory", file=sys.stderr)
                continue
            results.append(decode(model, kernels, kv_dtype, context, args.tokens))
            if not args.json:
                print(results[-1], flush=True)
    if args.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
