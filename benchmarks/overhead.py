"""What a decode step spends outside the model's arithmetic: choosing the token, and Python.

    python benchmarks/overhead.py                                   # starter, and the 9B shape in int4
    python benchmarks/overhead.py --shapes glm-4-9b --tokens 16 --json

Python: a step's time less the time inside the compiled kernels (their argument checks included) and less sampling, at
batch 1 behind a short context. Goals: under 3 % of a step of the 9B shape, under 15 % of the starter's.
Sampling: from the starter's own logits after a real prompt, because random weights give flat distributions that no
model has; 151,936 of them, as many as GLM-4's 151,552. Goal: under 2 % of a step of the 9B shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import harness
from glm4 import LLM, SamplingParams
from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend
from glm4.engine.protocol import GenerationRequest
from glm4.engine.sampling import Sampler, token_logprobs
from glm4.kernels import native
from glm4.model.shapes import SHAPES
from glm4.prompt import Prompt

TEXT = "Explain to a child why the sky is blue, why sunsets are red, and what clouds have to do with either of them."
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_k 20, top_p 0.8, repetition 1.1": {"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1},
    "all penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "greedy, 5 logprobs": {"temperature": 0.0, "logprobs": 5},
}


class TimedModule:
    """`glm4.kernels._native` with a clock around every function."""

    def __init__(self, module: Any) -> None:
        self._module, self.seconds, self.calls = module, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            return result

        setattr(self, name, timed)  # found directly from now on
        return timed


@dataclass(frozen=True)
class Step:
    """Medians over the decode steps of one model, in microseconds."""

    model: str
    step: float
    kernels: float
    sampling: float
    python: float
    python_share: float
    kernel_calls: int


def steps(name: str, backend: LocalBackend, tokens: int) -> Step:
    """Decode greedily at batch 1, with clocks on the kernels and on what follows the logits."""
    engine: Any = backend.engine
    module: Any = native
    advance, sampling = engine._advance, [0.0]
    timed = TimedModule(module._native)

    def timed_advance(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = advance(*arguments)
        sampling[0] += time.perf_counter() - start
        return result

    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    ids = np.random.default_rng(0).integers(0, backend.info.vocab_size, 16).tolist()
    backend.add_request(GenerationRequest("overhead", Prompt(ids), params))
    backend.step()
    found = []
    try:
        engine._advance, module._native = timed_advance, timed
        while backend.has_unfinished_requests():
            before, start = (timed.seconds, sampling[0], timed.calls), time.perf_counter()
            backend.step()
            whole = time.perf_counter() - start
            found.append((whole, timed.seconds - before[0], sampling[0] - before[1], timed.calls - before[2]))
    finally:
        engine._advance, module._native = advance, timed._module
    python = [whole - inside - chosen for whole, inside, chosen, _ in found]
    whole, inside, chosen, calls = (statistics.median(column) for column in zip(*found, strict=True))
    share = statistics.median(part / item[0] for part, item in zip(python, found, strict=True))
    return Step(name, whole * 1e6, inside * 1e6, chosen * 1e6, statistics.median(python) * 1e6, share, int(calls))


def sampling_costs(llm: LLM, backend: LocalBackend, repeat: int) -> dict[str, float]:
    """Microseconds of choosing one token from real logits, by option."""
    rows: list[np.ndarray[Any, Any]] = []
    model: Any = backend.model
    logits = model.logits

    def recorded(hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows.append(logits(hidden))
        return rows[-1].copy()

    model.logits = recorded
    try:
        llm.chat([{"role": "user", "content": TEXT}], SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
    finally:
        model.logits = logits
    real = [row[-1] for row in rows]
    prompt = llm.tokenizer.encode(TEXT * 20)
    banned = llm.tokenizer.unnamed_ids(backend.info.vocab_size)
    return {
        name: _median_us(_chooser(backend, options, real, prompt, banned), repeat) for name, options in OPTIONS.items()
    }


def _chooser(
    backend: LocalBackend, options: dict[str, Any], rows: list[Any], prompt: list[int], banned: Any
) -> Callable[[], float]:
    """A function that chooses a token and returns the seconds it took; the copy of the row is not counted."""
    params = SamplingParams(**({"seed": 0, "max_tokens": 4096} | options))
    sampler, turn = Sampler(GenerationRequest("overhead", Prompt(prompt), params), banned), 0

    def choose() -> float:
        nonlocal turn
        row = rows[turn % len(rows)].copy()
        turn += 1
        start = time.perf_counter()
        scores = None
        if params.logprobs is not None:
            scores = backend.model.kernels.log_softmax(row[None, :])[0]
        token = sampler.sample(row, turn)
        if scores is not None:
            token_logprobs(scores, token, params.logprobs or 0)
        return time.perf_counter() - start

    return choose


def _median_us(choose: Callable[[], float], repeat: int) -> float:
    choose()
    return statistics.median(choose() for _ in range(repeat)) * 1e6


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["starter", "glm-4-9b"], choices=sorted(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["int8", "int4"], help="one for each of --shapes")
    parser.add_argument("--model", default="starter", help="whose logits are sampled")
    parser.add_argument("--tokens", type=int, default=48, help="decode steps of each shape")
    parser.add_argument("--repeat", type=int, default=200, help="tokens chosen with each option")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    facts = harness.facts(arguments.tokens)
    facts["rounds"] = f"medians over {arguments.tokens} steps, {arguments.repeat} tokens"
    found = []
    for shape, dtype in zip(arguments.shapes, arguments.dtypes, strict=True):
        harness.progress(f"steps of {shape} {dtype}")
        config = SHAPES[shape]
        question = speed.Question(16, arguments.tokens)
        backend = LocalBackend.random(config, speed.backend_options(config, [question], dtype))
        found.append(steps(f"{shape} {dtype}", backend, arguments.tokens))
        del backend
    harness.progress(f"sampling from the logits of {arguments.model}")
    with LLM(arguments.model, max_model_len=1024, max_num_seqs=1, speculation=False) as llm:
        assert isinstance(llm.backend, LocalBackend)
        costs = sampling_costs(llm, llm.backend, arguments.repeat)
    harness.progress("")
    if arguments.json:
        print(json.dumps({"facts": facts, "steps": [asdict(step) for step in found], "sampling_us": costs}, indent=2))
        return
    print(harness.bullets(facts) + "\n")
    titles = ["model", "step, µs", "kernels", "sampling (greedy)", "Python", "Python's share", "kernel calls"]
    rows = [[s.model, s.step, s.kernels, s.sampling, s.python, f"{s.python_share:.1%}", s.kernel_calls] for s in found]
    print(harness.table(titles, rows) + "\n")
    shares = [[name, cost, *(f"{cost / step.step:.2%}" for step in found)] for name, cost in costs.items()]
    print(harness.table(["sampling", "µs", *(f"of a step of {step.model}" for step in found)], shares))


if __name__ == "__main__":
    main()
