"""What a run writes for its readers: `metrics.jsonl`, `status.json`, `loss.png`. Needs no torch, see `run_folder`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm4.system.atomic_file import atomic_file
from glm4.training.run_folder import METRICS, PLOT, SAMPLES, STATUS, read_metrics


class MetricsLog:
    """The files of one run that is under way.

    Args:
        folder: of the run; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._status: dict[str, Any] = {}

    def rewind(self, step: int) -> None:
        """Forget what came after a step: a run that goes on from there writes it again. 0 forgets everything."""
        for name in (METRICS, SAMPLES):
            path = self._folder / name
            if not path.exists():
                continue
            kept = [line for line in path.read_bytes().splitlines() if 0 < _step(line) <= step]
            with atomic_file(path) as file:
                file.writelines(line + b"\n" for line in kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        self._append(METRICS, row)

    def sample(self, row: Mapping[str, Any]) -> None:
        """One line of `samples.jsonl`."""
        self._append(SAMPLES, row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def status(self, **changes: Any) -> None:
        """Write `status.json`, with what was said before where nothing changed."""
        self._status = {"pid": os.getpid(), **self._status, **changes, "updated": time.time()}
        with atomic_file(self._folder / STATUS) as file:
            file.write(json.dumps(self._status).encode() + b"\n")

    def plot(self) -> bool:
        """Draw `loss.png` of the whole run; False if matplotlib is not installed."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return False
        figure = Figure(figsize=(8, 4.5), layout="tight")
        axes = figure.add_subplot(xlabel="step", ylabel="loss")
        rows = read_metrics(self._folder)
        for key, label in (("loss", "training"), ("eval_loss", "validation")):
            points = [(row["step"], row[key]) for row in rows if key in row and "step" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 40 else "", markersize=3)
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
        with atomic_file(self._folder / PLOT) as file:
            FigureCanvasAgg(figure).print_png(file)
        return True


def _step(line: bytes) -> int:
    """The step of a line; 0 of one that is broken."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
