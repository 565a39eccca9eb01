"""What the KV store saves: time to first token of a second question about a document, relative to the first.

    python benchmarks/kv_store.py
    python benchmarks/kv_store.py --model smoke --tokens 2000 --rounds 5

`glm4 serve --kv-store` and one client, over HTTP on loopback. Every round has documents of its own. The second question
comes to the same server; to one that was started after the first had ended; and to one that was started after `kill -9`
of the first, sent when the first token arrived, so that the last pages are being written. Each server has answered a
short question before, so that its weights are in memory. Goal: the second takes at most 10 % of the first.

The first question also goes to a server without a store, which shows what writing costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import harness
from prefix import ANSWER, QUESTIONS, document
from serving import Job, Load, ask, free_port, ours, server


@dataclass
class Way:
    """How the second question came, and what both took, in seconds."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    def add(self, first: float, second: Load) -> None:
        self.first.append(first)
        self.second.append(second.first[0])
        self.sizes.append(second.prompt_tokens)
        self.cached.append(second.cached_tokens)

    def figures(self, name: str) -> dict[str, object]:
        """A row."""
        return {
            "second question": name,
            "prompt, tokens": statistics.median(self.sizes),
            "cached": statistics.median(self.cached),
            "TTFT of the first, ms": 1000 * statistics.median(self.first),
            "of the second, ms": 1000 * statistics.median(self.second),
            "second / first": statistics.median(two / one for one, two in zip(self.first, self.second, strict=True)),
            "largest": max(two / one for one, two in zip(self.first, self.second, strict=True)),
        }


class Runs:
    """Servers with a store, and without."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.port = free_port()
        self._plain = ours(arguments.model, arguments.dtype, arguments.threads, 1, self.port)
        self._plain[self._plain.index("--context") + 1] = str(arguments.tokens + 1000)
        self._plain += ["--kv-dtype", arguments.kv_dtype]
        self._stored = [*self._plain, "--kv-store", folder, "--kv-store-dtype", arguments.kv_store_dtype]

    @contextmanager
    def serve(self, *, stored: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """A server that is warm."""
        with server(self._stored if stored else self._plain, self.port, "/ready") as process:
            self.ask(document(100, seed=-1))
            yield process

    def ask(self, prompt: str) -> Load:
        """A question, and its answer to the end."""
        load = Load()
        asyncio.run(ask(self.port, Job(prompt, ANSWER), load))
        return load

    def ask_and_kill(self, prompt: str, process: subprocess.Popen[bytes]) -> float:
        """A question, and kill -9 as soon as its answer begins; seconds to the first token."""

        async def run() -> float:
            load = Load()
            task = asyncio.create_task(ask(self.port, Job(prompt, 100), load))
            while not load.first and not task.done():
                await asyncio.sleep(0.0005)
            process.kill()
            task.cancel()
            return load.first[0]

        return asyncio.run(run())


def measure(runs: Runs, tokens: int, number: int, ways: dict[str, Way], costs: list[float]) -> None:
    """One round."""
    about, other = (document(tokens, 2 * number + index) for index in (0, 1))
    prompts, others = ([f"{text}\n\n{question}" for question in QUESTIONS] for text in (about, other))
    with runs.serve(stored=False):
        plain = runs.ask(prompts[0]).first[0]
    with runs.serve():
        first = runs.ask(prompts[0]).first[0]
        ways["same server"].add(first, runs.ask(prompts[1]))
    costs.append(first / plain)
    with runs.serve() as process:
        ways["after a restart"].add(first, runs.ask(prompts[1]))
        first = runs.ask_and_kill(others[0], process)
        process.wait()
    with runs.serve():
        ways["after kill -9"].add(first, runs.ask(others[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--kv-store-dtype", default="int8")
    parser.add_argument("--tokens", type=int, default=4000, help="length of the document, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.rounds)
    ways = {name: Way() for name in ("same server", "after a restart", "after kill -9")}
    costs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(arguments, folder)
        for number in range(arguments.rounds):
            harness.progress(f"round {number + 1}/{arguments.rounds}")
            measure(runs, arguments.tokens, number, ways, costs)
    harness.progress("")
    facts["first question with a store / without"] = f"{statistics.median(costs):.2f}"
    rows = [way.figures(name) for name, way in ways.items()]
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(rows[0]), [list(row.values()) for row in rows])}")


if __name__ == "__main__":
    main()
