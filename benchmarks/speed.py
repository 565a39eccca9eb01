"""Prefill, decode and batched decode of one model beside llama.cpp and OpenVINO, in one run.

    python benchmarks/speed.py --random glm-4-9b --dtype int4 --llama BUILD/bin --gguf Q4_0.gguf Q4_K_M.gguf \
        --openvino-python OV/bin/python --contexts 1 128 512 2048
    python benchmarks/speed.py --random glm-4-9b --dtype int4 ... --contexts 16 --batches 4 8
    python benchmarks/speed.py --model starter --llama BUILD/bin --contexts 1 128 512 2048

Every side runs the same loads: prompts of each length, and tokens after them; for a named model llama.cpp reads the
very same GGUF file. The sides take turns, a round each (A B C A B C …), so that a machine that drifts slows all;
medians and their ratios are what counts. README.md here tells how to get the peers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import harness
from contenders import Contender, LlamaCpp, OpenVino, Ours
from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend
from glm4.benchmark import Question
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.hub import resolve
from glm4.model.shapes import SHAPES

_SHORTEST_PREFILL = 32  # shorter prompts only stand in front of a decode


@dataclass
class Row:
    """One figure of the table.

    Attributes:
        rates: tokens per second of each round, by contender.
        yardstick: tokens per second at which we would use all of the machine's bandwidth (decode) or peak (prefill).
    """

    question: str
    prefill: bool
    yardstick: float
    rates: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """Ours over the peer's median."""
        ours, theirs = harness.median(self.rates["ours"]), harness.median(self.rates.get(peer, []))
        return ours / theirs if ours and theirs else None

    @property
    def share(self) -> float:
        """Of the yardstick, by our median."""
        return (harness.median(self.rates["ours"]) or 0.0) / self.yardstick

    def cells(self, names: Sequence[str]) -> list[object]:
        """Ours, our share, then each peer and the ratio."""
        unit = "peak" if self.prefill else "bandwidth"
        cells: list[object] = [self.question, harness.median(self.rates["ours"]), f"{self.share:.0%} of {unit}"]
        for name in names[1:]:
            cells += [harness.median(self.rates[name]), self.ratio(name)]
        return cells


def load(arguments: argparse.Namespace, loads: Sequence[Question]) -> LocalBackend:
    """Our engine, with no more KV cache than the loads need, nothing shared and nothing guessed: as the peers do it."""
    chosen = (loads, arguments.dtype, arguments.kv_dtype, arguments.threads)
    if arguments.random:
        config = SHAPES[arguments.random]
        config = replace(config, num_hidden_layers=arguments.layers or config.num_hidden_layers)
        return LocalBackend.random(config, speed.backend_options(config, *chosen))
    with open_checkpoint(resolve(arguments.model)) as checkpoint:
        options = speed.backend_options(checkpoint.config, *chosen, stored=checkpoint.stored_precision)
        return LocalBackend.load(checkpoint, options, np.empty(0, np.int64))


def opponents(arguments: argparse.Namespace, layers: int) -> list[Contender]:
    """The peers that were asked for."""
    peers: list[Contender] = []
    if arguments.llama:
        for path in arguments.gguf or [own_gguf(arguments)]:
            peers.append(LlamaCpp(arguments.llama, path.stem, path, arguments.threads))
    if arguments.openvino_python:
        if not str(arguments.random).startswith("glm-4-9b"):
            raise SystemExit("openvino_stack.py builds the 9B shape only; leave --openvino-python out")
        weights = "int8" if arguments.dtype == "int8" else "int4"
        peers.append(OpenVino(arguments.openvino_python, weights, arguments.openvino_layers, layers, arguments.threads))
    return peers


def own_gguf(arguments: argparse.Namespace) -> Path:
    """The model's own GGUF file."""
    if arguments.random:
        raise SystemExit("--llama needs --gguf FILE beside --random (benchmarks/random_gguf.py writes one)")
    path = resolve(arguments.model)
    found = path if path.is_file() else next(path.glob("*.gguf"), None)
    if found is None:
        raise SystemExit(f"{arguments.model} has no GGUF file; name one with --gguf")
    return found


def rows_of(backend: LocalBackend, loads: Sequence[Question], yardsticks: harness.Yardsticks) -> list[list[Row]]:
    """For each load its prefill row (None of several or very short prompts) and its decode row."""
    rows = []
    for item in loads:
        steps = yardsticks.bandwidth / speed.bytes_per_step(backend, item)
        decode = Row(str(item), False, steps * item.batch)
        prefill = Row(f"prefill {item.context}", True, yardsticks.peak / speed.operations_per_token(backend))
        wanted = item.batch == 1 and item.context >= _SHORTEST_PREFILL
        rows.append([prefill, decode] if wanted else [decode])
    return rows


def compare(contenders: Sequence[Contender], loads: Sequence[Question], rows: list[list[Row]], rounds: int) -> None:
    """Everybody's turn, round by round; fills `rows`."""
    for number in range(rounds):
        for contender in contenders:
            harness.progress(f"round {number + 1}/{rounds}: {contender.name}")
            for rates, pair in zip(contender.answer(loads), rows, strict=True):
                for row in pair:
                    rate = rates.prefill if row.prefill else rates.decode
                    row.rates.setdefault(contender.name, []).append(rate)
    harness.progress("")


def report(contenders: Sequence[Contender], rows: Sequence[Row], facts: dict[str, object]) -> str:
    """Markdown."""
    names = [contender.name for contender in contenders]
    titles = ["question, tokens/s", "ours", "share"]
    for name in names[1:]:
        titles += [name, "ratio"]
    return f"{harness.bullets(facts)}\n\n{harness.table(titles, [row.cells(names) for row in rows])}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--random", choices=sorted(SHAPES), help="random weights in this shape instead of a model")
    parser.add_argument("--layers", type=int, help="with --random: fewer (as in --gguf), where memory is short")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1, 128, 512], help="prompt lengths")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="sequences at once")
    parser.add_argument("--new", type=int, default=speed.DECODE_TOKENS, help="tokens after each prompt")
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's binaries, llama-batched-bench say")
    parser.add_argument("--gguf", type=Path, nargs="+", help="for llama.cpp, where it is not the model itself")
    parser.add_argument("--openvino-python", type=Path, help="a Python that has OpenVINO; 9B shape only")
    parser.add_argument("--openvino-layers", type=int, default=8, help="layers measured; scaled to all")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    facts = harness.facts(arguments.rounds)
    loads = [
        Question(context, arguments.new + 1, batch) for context in arguments.contexts for batch in arguments.batches
    ]
    yardsticks = harness.Yardsticks.measure()
    harness.progress("making our model ready")
    start = time.perf_counter()
    backend = load(arguments, loads)
    ready = time.perf_counter() - start
    layers = backend.model.config.num_hidden_layers
    contenders: list[Contender] = [Ours(backend), *opponents(arguments, layers)]
    rows = rows_of(backend, loads, yardsticks)
    compare(contenders, loads, rows, arguments.rounds)
    yardsticks = yardsticks.best(harness.Yardsticks.measure())
    flat = [row for pair in rows for row in pair]
    for row, final in zip(flat, (row for pair in rows_of(backend, loads, yardsticks) for row in pair), strict=True):
        row.yardstick = final.yardstick
    facts |= {
        "model": f"random {arguments.random}, {layers} layers" if arguments.random else arguments.model,
        "this machine": str(yardsticks),
        "our model ready after": f"{ready:.1f} s",
    }
    for contender in contenders:
        peak = f"; peak memory {max(contender.peaks) / 1e9:.2f} GB" if contender.peaks else ""
        facts[contender.name] = contender.facts() + peak
        contender.close()
    if arguments.json:
        names = [contender.name for contender in contenders[1:]]
        found = [vars(row) | {"share": row.share, "ratios": {name: row.ratio(name) for name in names}} for row in flat]
        print(json.dumps({"facts": facts, "rows": found}, indent=2))
    else:
        print(report(contenders, flat, facts))


if __name__ == "__main__":
    main()
