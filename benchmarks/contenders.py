"""The sides of a speed comparison: our engine, llama.cpp and OpenVINO, each asked the same loads.

A load is `batch` prompts of `context` ids each and some tokens after them. Every side answers with the prompts' tokens
per second and the tokens per second after them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend
from glm4.benchmark import Question, Rates
from harness import finish


class Contender(Protocol):
    """One side.

    Attributes:
        name: what the table calls it.
        peaks: peak memory in bytes of each round, where it is known.
    """

    name: str
    peaks: list[float]

    def answer(self, loads: Sequence[Question]) -> list[Rates]:
        """One round."""

    def facts(self) -> str:
        """Version and settings."""

    def close(self) -> None:
        """End processes, free memory."""


class Ours:
    """Our engine in this process."""

    name = "ours"

    def __init__(self, backend: LocalBackend) -> None:
        self._backend, self._rng = backend, np.random.default_rng(0)
        self.peaks: list[float] = []
        speed.run(backend, Question(32, 4), self._rng)  # first touch of every page

    def answer(self, loads: Sequence[Question]) -> list[Rates]:
        rates = [speed.run(self._backend, load, self._rng) for load in loads]
        unit = 1 if sys.platform == "darwin" else 1024
        self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        return rates

    def facts(self) -> str:
        run = self._backend.execution
        weights = self._backend.model.weights.nbytes / 1e9
        return f"{run.dtype}, {weights:.2f} GB of weights, KV cache {run.kv_cache_dtype}, {run.num_threads} threads"

    def close(self) -> None:
        self._backend.close()


class LlamaCpp:
    """llama.cpp's own llama-batched-bench, a fresh process a round that runs all loads.

    Its defaults apply: batches of 2,048 tokens in pieces of 512, fp16 KV cache, repacked weights, flash attention where
    it finds it faster. Only threads and context are set.
    """

    def __init__(self, folder: Path, name: str, gguf: Path, threads: int) -> None:
        self.name = f"llama.cpp {name}"
        self._binary, self._gguf, self._threads = folder / "llama-batched-bench", gguf, threads
        self.peaks: list[float] = []

    def answer(self, loads: Sequence[Question]) -> list[Rates]:
        contexts = sorted({load.context for load in loads})
        batches = sorted({load.batch for load in loads})
        (new,) = {load.new for load in loads}
        # A context of its own for each sequence, in whole units of 256 cells.
        cells = max(batches) * -(-(max(contexts) + new) // 256) * 256
        work = ["-npp", _commas(contexts), "-npl", _commas(batches), "-ntg", str(new - 1), "--output-format", "jsonl"]
        done = finish([self._binary, "-m", self._gguf, "-t", str(self._threads), "-c", str(cells), *work])
        self.peaks.append(done.peak_nbytes)
        found = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
        rates = {(row["pp"], row["pl"]): Rates(row["speed_pp"], row["speed_tg"], row["t_pp"]) for row in found}
        return [rates[load.context, load.batch] for load in loads]

    def facts(self) -> str:
        version = subprocess.run(
            [str(self._binary.with_name("llama-bench")), "--version"], capture_output=True, text=True, check=False
        )
        said = (version.stdout + version.stderr).strip().splitlines()
        return f"{self._gguf.name}, {self._gguf.stat().st_size / 1e9:.2f} GB{'; ' + said[0] if said else ''}"

    def close(self) -> None:
        """Nothing: no process stays."""


class OpenVino:
    """openvino_stack.py under a Python of its own that has OpenVINO; the compiled stack stays for all rounds.

    Some of the model's equal layers are measured and scaled to all of them; the head is measured by itself.
    """

    def __init__(self, python: Path, weights: str, layers: int, total: int, threads: int) -> None:
        self.name, self.peaks = f"OpenVINO {weights}", list[float]()
        self._scale = total / layers
        script = Path(__file__).with_name("openvino_stack.py")
        words = [str(python), str(script), weights, "--layers", str(layers), "--threads", str(threads)]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._facts = f"{self._read()['facts']}; {layers} layers measured, times {self._scale:g}, and the head"

    def _read(self) -> dict[str, object]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):
                reply: dict[str, object] = json.loads(line)
                return reply
        raise SystemExit(f"{self.name} ended with status {self._child.wait()}; its message stands above")

    def answer(self, loads: Sequence[Question]) -> list[Rates]:
        return [self._ask(load) for load in loads]

    def _ask(self, load: Question) -> Rates:
        assert self._child.stdin is not None
        question = {"context": load.context, "batch": load.batch, "new": load.new - 1}
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        reply: dict[str, float] = self._read()  # type: ignore[assignment]
        prefill = reply["prefill_seconds"] * self._scale + reply["head_seconds"]
        step = reply["step_seconds"] * self._scale + reply["head_seconds"]
        return Rates(load.batch * load.context / prefill, load.batch / step, prefill)

    def facts(self) -> str:
        return self._facts

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def _commas(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
