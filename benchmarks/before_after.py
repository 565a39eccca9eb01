"""No speed lost: the benchmarks of two checkouts in turn, on one machine in one run, and the ratio of every figure.

    git worktree add ../before COMMIT && make -C ../before VENV=.venv test ARGS=--collect-only
    python benchmarks/before_after.py ../before
    python benchmarks/before_after.py ../before --only speed start --rounds 7

Each checkout runs its own `benchmarks/*.py --json` with the Python of its own `.venv`, one after the other, round by
round, so that a drifting machine slows both alike. A ratio is after / before for rates and before / after for times: 1
is equal, more is faster. Quoted is the median over the rounds of each round's own ratio, and its lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

SPEED = ["--model", "starter", "--contexts", "1", "512", "--rounds", "1"]
NINE_B = ["--random", "glm-4-9b", "--layers", "6", "--dtype", "int4", "--contexts", "16", "256", "--rounds", "1"]
OVERHEAD = ["--shapes", "starter", "--dtypes", "int8", "--tokens", "48", "--repeat", "50"]


def speed_figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Tokens per second."""
    for row in found["rows"]:
        yield row["question"], next(iter(row["rates"].values()))[0], True


def start_figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Seconds of a whole command."""
    for row in found["rows"]:
        yield f"{row['program']}, command to exit", row["exit, s"], False


def serving_figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Tokens per second, and the median time to the first token."""
    for row in found["rows"]:
        yield f"{row['streams']} streams, tokens/s", row["tokens/s"], True
        yield f"{row['streams']} streams, time to first token", row["TTFT p50"], False


def overhead_figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Microseconds of a step that are Python's."""
    for step in found["steps"]:
        yield f"step of {step['model']}", step["step"], False
        yield f"Python in a step of {step['model']}", step["python"], False


BENCHMARKS: dict[str, tuple[str, list[str], Callable[[Mapping[str, Any]], Iterator[tuple[str, float, bool]]]]] = {
    "speed": ("speed.py", SPEED, speed_figures),
    "speed-9b": ("speed.py", NINE_B, speed_figures),
    "start": ("start.py", ["--rounds", "3"], start_figures),
    "serving": ("serving.py", ["--streams", "1", "8", "--rounds", "1"], serving_figures),
    "overhead": ("overhead.py", OVERHEAD, overhead_figures),
}


def run(checkout: Path, name: str) -> dict[str, tuple[float, bool]]:
    """One benchmark of one checkout.

    Raises:
        SystemExit: it failed; shows the end of what it wrote to standard error.
    """
    file, options, figures = BENCHMARKS[name]
    command = [str(checkout / ".venv/bin/python"), str(checkout / "benchmarks" / file), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return {title: (value, more) for title, value, more in figures(json.loads(done.stdout))}


def commit(checkout: Path) -> str:
    """Its commit, short."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Run everything and print a table."""
    import harness

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout, with a .venv of its own")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    before = arguments.before.resolve()
    facts = harness.facts(arguments.rounds) | {"before": commit(before), "after": commit(ROOT)}
    rows: list[list[Any]] = []
    for name in arguments.only:
        ratios: dict[str, list[float]] = {}
        latest: dict[str, tuple[float, float]] = {}
        for number in range(arguments.rounds):
            harness.progress(f"{name}, round {number + 1}/{arguments.rounds}")
            pair = [run(checkout, name) for checkout in (before, ROOT)[:: 1 if number % 2 else -1]]
            old, new = pair if number % 2 else pair[::-1]
            for title, (value, more) in new.items():
                ratio = value / old[title][0] if more else old[title][0] / value
                ratios.setdefault(title, []).append(ratio)
                latest[title] = old[title][0], value
        for title, found in ratios.items():
            rows.append([name, title, *latest[title], statistics.median(found), min(found), max(found)])
    harness.progress("")
    titles = ["benchmark", "figure", "before (last round)", "after (last round)", "ratio", "lowest", "highest"]
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": [dict(zip(titles, row, strict=True)) for row in rows]}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(titles, rows)}")


if __name__ == "__main__":
    main()
