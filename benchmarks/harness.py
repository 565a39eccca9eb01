"""What every comparison here shares: facts about the machine, whole commands with their peak memory, tables."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm4.benchmark import cached_product_peak, read_bandwidth
from glm4.kernels import get_kernels
from kernels import peak_tops

_CPU_NUMBERS = {"family": "cpu family", "model": "model"}


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end.

    Attributes:
        seconds: from its start to its exit.
        first_byte: from its start to the first byte of its standard output (to its exit where there was none).
        peak_nbytes: its largest resident memory; pages of mapped files count, as they do for us.
    """

    output: str
    seconds: float
    first_byte: float
    peak_nbytes: int


def finish(command: Sequence[str | Path]) -> Finished:
    """Run a command with nothing on its standard input.

    Raises:
        SystemExit: it failed; shows the end of what it wrote to standard error.
    """
    words = [str(word) for word in command]
    # Whoever turned the cache of compiled modules off would measure the compiler with every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]
    done = subprocess.run([*launcher, *words], stdout=subprocess.PIPE, env=environment, check=True)
    found = json.loads(done.stdout)
    if found["status"] != 0:
        raise SystemExit(f"{shlex.join(words)} failed with status {found['status']}:\n{found['errors']}")
    return Finished(found["output"], found["seconds"], found["first_byte"], found["peak_nbytes"])


@dataclass(frozen=True)
class Yardsticks:
    """What this machine does at best: bytes read per second, and operations per second.

    Attributes:
        peak: byte dot products between registers where a compiler is at hand (peak.cpp), else our own product in
            the processor's caches.
        peak_kind: which of the two.
    """

    bandwidth: float
    peak: float
    peak_kind: str

    @classmethod
    def measure(cls) -> Yardsticks:
        """Takes about two seconds."""
        kernels = get_kernels("native")
        registers = peak_tops(kernels.num_threads(), 0.3, time.perf_counter)
        if registers is not None:
            return cls(read_bandwidth(), registers * 1e12, "byte dot products between registers")
        return cls(read_bandwidth(), cached_product_peak(kernels), "our integer product in the caches")

    def best(self, other: Yardsticks) -> Yardsticks:
        """The larger of two tries each: other programs may have disturbed one."""
        return Yardsticks(max(self.bandwidth, other.bandwidth), max(self.peak, other.peak), self.peak_kind)

    def __str__(self) -> str:
        return f"reads {self.bandwidth / 1e9:.1f} GB/s; {self.peak / 1e12:.2f} TOPS ({self.peak_kind})"


def machine() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        entries = {name.strip(): value.strip() for name, value in lines}
        # Virtual machines often hide the product's name; family and model tell the generation.
        numbers = ", ".join(f"{name} {entries[key]}" for name, key in _CPU_NUMBERS.items() if key in entries)
        model = f"{entries.get('model name', model)} ({numbers})" if numbers else entries.get("model name", model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {num_cores()} cores, {memory:.0f} GB, {get_kernels('native').isa()}"


def num_cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """Short hash of the checkout, with a + when it has changes."""
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def command_line() -> str:
    """How this program was called, without where its files are."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def facts(rounds: int) -> dict[str, object]:
    """The conditions of a run. Call it before measuring: the load average is that of the machine without us."""
    return {
        "machine": machine(),
        "commit": commit(),
        "command": command_line(),
        "rounds": f"{rounds}, medians, sides alternating",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def progress(text: str) -> None:
    """One line on standard error that the next one overwrites; an empty text ends it."""
    print(f"\r{text}\x1b[K", end="" if text else "\n", file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float | None:
    """Median, or None of nothing."""
    return statistics.median(values) if values else None


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits or so, None as a dash."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def bullets(entries: dict[str, object]) -> str:
    """A Markdown list of facts."""
    return "\n".join(f"- {name}: {value}" for name, value in entries.items())
