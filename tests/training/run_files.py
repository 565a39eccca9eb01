"""Tiny models, data and runs of the tests of fine-tuning."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from glm4.cli import finetune as cli
from glm4.cli.parser import read
from glm4.training.config import TrainingConfig
from glm4.training.run_folder import read_metrics
from tiny import write_folder

STOPPED = 130
PATIENCE = 600


def write_rows(path: Path, count: int = 24) -> Path:
    """Conversations of unequal length."""
    with path.open("w") as file:
        for i in range(count):
            turns = [
                {"role": "user", "content": f"color {i % 7}?"},
                {"role": "assistant", "content": "blue" * (1 + i % 5)},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def write_inputs(folder: Path, count: int = 24) -> list[str]:
    """A model and data, and options of a run on them but for its output."""
    model, data = write_folder(folder / "base"), write_rows(folder / "train.jsonl", count)
    return ["-m", str(model), "--data", str(data), "--device", "cpu", "--lr", "1e-2", "--batch-size", "2"]


def run_cli(*args: str, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """`glm4 finetune` in a process of its own, or in several that it starts."""
    return subprocess.run(
        command(*args, processes=processes), env=env(environment), capture_output=True, text=True, timeout=PATIENCE
    )


def start_run(config: TrainingConfig) -> multiprocessing.process.BaseProcess:
    """`finetune` in a process of its own, which another one forks: so torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glm4.training.session"])
    process = context.Process(target=_run, args=(config,))
    process.start()
    return process


def _run(config: TrainingConfig) -> None:
    import torch

    from glm4.training.run import finetune

    torch.set_num_threads(1)
    sys.exit(STOPPED if finetune(config).interrupted else 0)


def finish_run(config: TrainingConfig) -> int | None:
    """The same, waited for: its exit code."""
    process = start_run(config)
    process.join(600)
    return process.exitcode


def config_of_flags(*flags: list[str]) -> TrainingConfig:
    """The configuration that a command line means."""
    given = read(cli.finetune, [flag for some in flags for flag in some])
    return cli.configuration(given["options"], None, given.get("preset"), given.get("set_"), given.get("resume"))


def command(*args: str, processes: int = 1) -> list[str]:
    several = ["--accelerator", "ddp", "--processes", str(processes)] if processes > 1 else []
    return [sys.executable, "-m", "glm4", "finetune", *args, *several]


def env(changes: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


def losses(run: Path) -> list[tuple[Any, ...]]:
    """Of each line of metrics: the step and its losses and gradient norm, to the last bit."""
    return [(row["step"], row.get("loss"), row.get("eval_loss"), row.get("grad_norm")) for row in read_metrics(run)]
