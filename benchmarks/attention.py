"""How fast is attention? Decode over long contexts (GB/s of the KV cache) and prefill (GFLOPS), without the rest.

    python benchmarks/attention.py                                   # GLM-4-9B: 2K, 32K, 128K; prefill of 512 tokens
    python benchmarks/attention.py --shape glm-4-9b-chat-1m --contexts 131072 524288 --prefills
    python benchmarks/attention.py --json

Random keys and values, pages in random order, several layers' caches in turn so that no processor cache holds them.
"of read" is the share of what a plain NumPy reduction reads on as many threads. GFLOPS counts the multiplications and
additions of visible keys only. Medians; look at the load average before trusting one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glm4.benchmark import fill
from glm4.kernels import get_kernels
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.shapes import SHAPES
from kernels import read_bandwidth

LAYERS_NBYTES = 256 << 20  # more than any last-level cache we have met


@dataclass(frozen=True)
class Result:
    """One figure: `rows` new tokens at the end of `context`."""

    kv_dtype: str
    context: int
    rows: int
    layer_ms: float
    token_ms: float  # all layers, per new token
    gb_per_s: float
    gflops: float

    def line(self, read: float) -> str:
        head = f"{self.kv_dtype:5} {self.context:8} {self.rows:5} {self.layer_ms:9.2f} {self.token_ms:10.2f}"
        return f"{head} {self.gb_per_s:7.1f} {self.gb_per_s / read:6.0%} {self.gflops:8.0f}"


class Case:
    """Caches of a few layers, and queries."""

    def __init__(self, config: ModelConfig, kv_dtype: str, context: int, rows: int) -> None:
        rng = np.random.default_rng(0)
        self.config, self.kv_dtype, self.context, self.rows = config, kv_dtype, context, rows
        pages = pages_for(context)
        one = KVCache(replace(config, num_hidden_layers=1), pages, kv_dtype)
        self.layer_nbytes = one.keys[0].nbytes + one.values[0].nbytes
        layers = -(-LAYERS_NBYTES // self.layer_nbytes) if rows == 1 else 1
        self.caches = [one] + [
            KVCache(replace(config, num_hidden_layers=1), pages, kv_dtype) for _ in range(layers - 1)
        ]
        for cache in self.caches:
            fill(cache, pages, rng)
        self.tables = rng.permutation(pages).astype(np.int32)[None]
        self.queries = rng.standard_normal((rows, config.num_attention_heads, config.head_dim), dtype=np.float32)
        self.turn = 0

    def seconds(self) -> float:
        cache = self.caches[self.turn % len(self.caches)]
        self.turn += 1
        starts, lens = np.array([0, self.rows], np.int32), np.array([self.context], np.int32)
        scale = self.config.head_dim**-0.5
        start = time.perf_counter()
        get_kernels().paged_attention(self.queries, cache.keys[0], cache.values[0], self.tables, starts, lens, scale)
        return time.perf_counter() - start

    def result(self, times: list[float]) -> Result:
        config, elapsed = self.config, statistics.median(times)
        visible = self.rows * (self.context - self.rows) + self.rows * (self.rows + 1) // 2
        read = self.layer_nbytes * self.context / (pages_for(self.context) * PAGE_SIZE)
        return Result(
            kv_dtype=self.kv_dtype,
            context=self.context,
            rows=self.rows,
            layer_ms=elapsed * 1e3,
            token_ms=elapsed * 1e3 * config.num_hidden_layers / self.rows,
            gb_per_s=read / elapsed / 1e9,
            gflops=4 * visible * config.query_size / elapsed / 1e9,
        )


def measure(config: ModelConfig, kv_dtypes: list[str], context: int, rows: int, seconds: float) -> list[Result]:
    """All cache formats in turn, so that a machine that drifts slows each of them."""
    cases = [Case(config, kv_dtype, context, rows) for kv_dtype in kv_dtypes]
    times: list[NDArray[np.float64]] = [np.empty(0) for _ in cases]
    for case in cases:
        case.seconds()
    end = time.perf_counter() + seconds * len(cases)
    while len(times[0]) < 5 or time.perf_counter() < end:
        for index, case in enumerate(cases):
            times[index] = np.append(times[index], case.seconds())
    return [case.result(values.tolist()) for case, values in zip(cases, times, strict=True)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of the attention kernel.")
    parser.add_argument("--shape", default="glm-4-9b-chat", choices=sorted(SHAPES))
    parser.add_argument("--contexts", nargs="*", type=int, default=[2048, 32768, 131072], help="decode of one token")
    parser.add_argument("--prefills", nargs="*", type=int, default=[512, 2048, 8192, 32768], help="contexts of --rows")
    parser.add_argument("--rows", type=int, default=512, help="tokens of a prefill chunk")
    parser.add_argument("--kv-dtypes", nargs="+", default=["fp16", "int8"])
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent per figure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    kernels = get_kernels("native")
    if args.threads:
        kernels.set_num_threads(args.threads)
    read = read_bandwidth(kernels.num_threads(), 1.0)
    machine = {
        "shape": args.shape,
        "isa": kernels.isa(),
        "threads": kernels.num_threads(),
        "load_average": os.getloadavg()[0],
        "read_gb_per_s": read,
    }
    if not args.json:
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in machine.items()))
        print(
            f"{'cache':5} {'context':>8} {'rows':>5} {'ms/layer':>9} {'ms/token':>10} {'GB/s':>7} {'of read':>7} "
            f"{'GFLOPS':>7}"
        )
    results: list[Result] = []
    for context, rows in [(n, 1) for n in args.contexts] + [(n, min(n, args.rows)) for n in args.prefills]:
        for result in measure(SHAPES[args.shape], args.kv_dtypes, context, rows, args.seconds):
            results.append(result)
            if not args.json:
                print(result.line(read), flush=True)
    if args.json:
        print(json.dumps({"machine": machine, "results": [asdict(result) for result in results]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
