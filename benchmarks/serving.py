"""Many clients at once: `glm4 serve` beside llama-server on the same model file, over HTTP on loopback.

    python benchmarks/serving.py --llama BUILD/bin
    python benchmarks/serving.py --llama BUILD/bin --streams 16 --rounds 5

Each of N clients sends its requests one after the other and reads the streams: prompts of 16 to 512 tokens that share
nothing, answers of 16 to 96, greedy, end of text ignored, so both servers do the same work. The servers take turns,
each started afresh for its turn and warmed up. Time to first token and the time between two deliveries are those
a client sees.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import harness
from programs import gguf_of

PROMPT_LENGTHS = (16, 32, 64, 128, 256, 512)
ANSWER_LENGTHS = (16, 32, 48, 64, 96)
REQUESTS = {1: 6, 4: 12, 16: 32, 64: 64}
WORDS = ("river", "glass", "seven", "north", "quiet", "paper", "orange", "engine", "window", "lemon", "stone", "cloud")


@dataclass(frozen=True)
class Job:
    """One request: a prompt of about so many tokens and an answer of exactly so many."""

    prompt: str
    tokens: int


@dataclass
class Load:
    """What the clients saw in one round at one concurrency."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Tokens generated per second, and latencies in milliseconds."""
        return {
            "tokens/s": self.completion_tokens / self.seconds,
            "TTFT p50": 1000 * percentile(self.first, 50),
            "TTFT p99": 1000 * percentile(self.first, 99),
            "ITL p50": 1000 * percentile(self.between, 50),
            "ITL p99": 1000 * percentile(self.between, 99),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share / 100 * len(ordered)))]


def jobs(streams: int, seed: int) -> list[list[Job]]:
    """Every client's requests; the lengths are dealt out evenly, the words are random."""
    draw = random.Random(seed)
    count = REQUESTS.get(streams, 2 * streams)
    made = []
    for number in range(count):
        words = PROMPT_LENGTHS[number % len(PROMPT_LENGTHS)]
        text = " ".join(draw.choice(WORDS) for _ in range(words))
        made.append(Job(f"{draw.randrange(10**6)} {text}", ANSWER_LENGTHS[number % len(ANSWER_LENGTHS)]))
    draw.shuffle(made)
    return [made[client::streams] for client in range(streams)]


async def ask(port: int, job: Job, load: Load) -> None:
    """Send one request and read its stream."""
    body = json.dumps(
        {
            "model": "bench",
            "prompt": job.prompt,
            "max_tokens": job.tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    sent = latest = time.perf_counter()
    writer.write(head.encode() + body)
    begun, usage = False, None
    async for line in reader:
        if line.startswith(b"HTTP/") and b" 200 " not in line:
            raise SystemExit(f"port {port} answered {line.decode().strip()}: {(await reader.read(2000)).decode()}")
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        if not any(choice.get("text") for choice in event["choices"]):
            continue
        now = time.perf_counter()
        (load.between if begun else load.first).append(now - (latest if begun else sent))
        begun, latest = True, now
    writer.close()
    if usage is None or usage["completion_tokens"] != job.tokens:
        raise SystemExit(f"port {port} gave {usage}, not {job.tokens} tokens")
    load.prompt_tokens += usage["prompt_tokens"]
    load.completion_tokens += usage["completion_tokens"]
    load.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def clients(port: int, streams: int, seed: int) -> Load:
    """All clients at once."""
    load = Load()

    async def client(mine: list[Job]) -> None:
        for job in mine:
            await ask(port, job, load)

    started = time.perf_counter()
    await asyncio.gather(*(client(mine) for mine in jobs(streams, seed)))
    load.seconds = time.perf_counter() - started
    return load


@contextmanager
def server(command: Sequence[str | Path], port: int, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends, or kills it."""
    with tempfile.TemporaryFile() as errors:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen([str(word) for word in command], stdout=errors, stderr=errors, env=environment)
        try:
            for _ in range(1200):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2):
                        break
                except OSError:
                    if process.poll() is not None:
                        errors.seek(0)
                        raise SystemExit(errors.read()[-3000:].decode("utf-8", "replace")) from None
                    time.sleep(0.1)
            else:
                raise SystemExit(f"{command[0]} did not become ready")
            yield process
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ours(model: str, dtype: str, threads: int, slots: int, port: int) -> list[str | Path]:
    """Our command line."""
    glm4 = Path(sys.executable).with_name("glm4")
    options = ["--dtype", dtype, "--threads", str(threads), "--max-num-seqs", str(slots), "--context", "2048"]
    return [glm4, "serve", "-m", f"bench={model}", "--port", str(port), "--log-level", "warning", *options]


def llama(folder: Path, gguf: Path, threads: int, slots: int, port: int) -> list[str | Path]:
    """llama-server's."""
    size = ["-np", str(slots), "-c", str(2048 * slots), "-t", str(threads), "-tb", str(threads)]
    return [folder / "llama-server", "-m", gguf, "--port", str(port), "--alias", "bench", *size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, nargs="+", default=sorted(REQUESTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's binaries")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.rounds)
    slots = max(arguments.streams)
    ports = {"glm4": free_port()}
    commands = {"glm4": ours(arguments.model, arguments.dtype, arguments.threads, slots, ports["glm4"])}
    if arguments.llama:
        ports["llama-server"] = free_port()
        commands["llama-server"] = llama(
            arguments.llama, gguf_of(arguments.model), arguments.threads, slots, ports["llama-server"]
        )
    rows = []
    for streams in arguments.streams:
        loads: dict[str, list[Load]] = {name: [] for name in commands}
        for number in range(arguments.rounds):
            for name, command in commands.items():
                harness.progress(f"{streams} streams, round {number + 1}/{arguments.rounds}: {name}")
                # A server of its own each time: neither finds prompts of an earlier round in its cache.
                with server(command, ports[name], "/ready" if name == "glm4" else "/health"):
                    asyncio.run(clients(ports[name], min(streams, 2), seed=10_000))  # warm
                    loads[name].append(asyncio.run(clients(ports[name], streams, seed=number)))
        medians = {
            name: {key: statistics.median(load.figures()[key] for load in sides) for key in sides[0].figures()}
            for name, sides in loads.items()
        }
        for name, figures in medians.items():
            ratio = medians["glm4"]["tokens/s"] / figures["tokens/s"]
            rows.append({"streams": streams, "server": name, **figures, "tokens/s, ours / this": ratio})
    harness.progress("")
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(rows[0]), [list(row.values()) for row in rows])}")


if __name__ == "__main__":
    main()
