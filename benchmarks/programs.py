"""Command lines of whole programs: ours and llama.cpp's, for the same prompt on the same model file, greedy."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import harness
from glm4.hub import resolve

Command = list[str | Path]


@dataclass
class Program:
    """One side of a comparison of whole programs.

    Attributes:
        runs: every round's run, in order.
    """

    name: str
    command: Command
    runs: list[harness.Finished] = field(default_factory=list)

    def median(self, figure: Callable[[harness.Finished], float]) -> float:
        """Of all rounds."""
        return statistics.median(figure(run) for run in self.runs)


def glm4(*arguments: str) -> Command:
    """Our command, by the Python that runs this program."""
    return [Path(sys.executable).with_name("glm4"), *arguments]


def gguf_of(model: str) -> Path:
    """The GGUF file of an installed model, for the peers.

    Raises:
        SystemExit: it has none.
    """
    path = resolve(model)
    found = path if path.is_file() else next(path.glob("*.gguf"), None)
    if found is None:
        raise SystemExit(f"{model} has no GGUF file that llama.cpp could read")
    return found


def llama_programs(folder: Path, gguf: Path, prompt: str, new: int, threads: int, *, chat: bool) -> list[Program]:
    """llama.cpp's programs that are built in `folder`.

    llama-simple takes no number of threads (it uses four) and no chat template: the least that llama.cpp can do.
    """
    sampling = ["-n", str(new), "--temp", "0", "-t", str(threads)]
    turn = ["-st"] if chat else ["-no-cnv", "--no-display-prompt"]
    forms: dict[str, Command] = {
        "llama-simple": ["-m", gguf, "-n", str(new), prompt],
        "llama-completion": ["-m", gguf, "-p", prompt, *turn, *sampling],
        "llama-completion --no-warmup": ["-m", gguf, "-p", prompt, *turn, *sampling, "--no-warmup"],
    }
    if chat:
        forms["llama-cli"] = ["-m", gguf, "-p", prompt, "-st", *sampling]
    programs = [Program(name, [folder / name.split()[0], *words]) for name, words in forms.items()]
    found = [program for program in programs if Path(program.command[0]).exists()]
    if not found:
        raise SystemExit(f"{folder} holds none of {', '.join(forms)}; README.md here tells how to build them")
    return found


def take_turns(programs: Sequence[Program], rounds: int) -> None:
    """Run every program once a round, after one run each that fills the page cache (and our packed cache)."""
    for number in range(rounds + 1):
        for program in programs:
            harness.progress(f"{f'round {number}/{rounds}' if number else 'warming up'}: {program.name}")
            run = harness.finish(program.command)
            if number:
                program.runs.append(run)
    harness.progress("")


def report(
    programs: Sequence[Program],
    figures: dict[str, Callable[[harness.Finished], float]],
    facts: dict[str, object],
    *,
    as_json: bool,
) -> str:
    """Medians of each figure (the first of them decides the ratio: ours over theirs), as Markdown or JSON."""
    first = next(iter(figures.values()))
    ours = programs[0].median(first)
    rows = []
    for program in programs:
        medians = {name: program.median(figure) for name, figure in figures.items()}
        rows.append(
            {
                "program": program.name,
                **medians,
                "ours / this": ours / program.median(first),
                "peak memory, GB": program.median(lambda run: run.peak_nbytes / 1e9),
            }
        )
    if as_json:
        for row, program in zip(rows, programs, strict=True):
            row["rounds"] = [[run.first_byte, run.seconds] for run in program.runs]
        return json.dumps({"facts": facts, "rows": rows}, indent=2)
    return f"{harness.bullets(facts)}\n\n{harness.table(list(rows[0]), [list(row.values()) for row in rows])}"
