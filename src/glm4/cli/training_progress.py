"""What `glm4 finetune` shows while it runs: a summary, a bar, and a line for each line of metrics."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4.cli import console
from glm4.training.listener import Listener, Summary

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from glm4.training.data.dataset import DataReport


@contextmanager
def watching() -> Iterator[Listener]:
    """A listener that shows everything on standard error."""
    if not console.is_terminal(sys.stderr):
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console.stderr(),
        transient=True,
    )
    with bars:
        yield _Bars(bars)


class _Lines(Listener):
    """Lines, for log files."""

    def __init__(self) -> None:
        self._loading = console.PlainProgress()
        self._total = self._resumed = 0
        self._began = 0.0

    def loading(self, stage: str, done: float, total: float) -> None:
        """Only what takes long."""
        self._loading(stage, done, total)

    def note(self, text: str) -> None:
        """One line."""
        self.say(f"note: {text}")

    def started(self, summary: Summary) -> None:
        """The summary."""
        self._total, self._resumed, self._began = summary.steps, summary.resumed, time.monotonic()
        for line in summary_lines(summary):
            self.say(line)

    def logged(self, row: Mapping[str, Any]) -> None:
        """One line."""
        self.say(metrics_line(row, self._total) + self._remaining(int(row["step"])))

    def saved(self, checkpoint: Path) -> None:
        """One line."""
        self.say(f"saved {checkpoint}")

    def say(self, line: str) -> None:
        """Print a line."""
        print(console.printable(line), file=sys.stderr, flush=True)

    def _remaining(self, step: int) -> str:
        done = step - self._resumed
        if done <= 0 or step >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        return f"  {console.human_duration(seconds)} left"


class _Bars(_Lines):
    """The same lines above a bar."""

    def __init__(self, bars: Progress) -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._latest = ""

    def loading(self, stage: str, done: float, total: float) -> None:
        """A bar for each stage."""
        self._show(stage, done, total, console.amount(done, total))

    def stepped(self, step: int, total: int) -> None:
        """Move the bar."""
        self._show("training", step, total, f"{step}/{total}{self._latest}")

    def logged(self, row: Mapping[str, Any]) -> None:
        """A line above, and the newest figures in the bar."""
        if "loss" in row:
            self._latest = f"  loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
        self.say(metrics_line(row, self._total))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(console.printable(line), soft_wrap=True)

    def _show(self, stage: str, done: float, total: float, amount: str) -> None:
        if stage not in self._tasks:
            for earlier in self._tasks.values():
                self._bars.update(earlier, visible=False)
            self._tasks[stage] = self._bars.add_task(stage, total=total or None, completed=int(done), amount="")
        self._bars.update(self._tasks[stage], completed=done, total=total or None, amount=amount)


def summary_lines(summary: Summary) -> list[str]:
    """What the run is about to do."""
    share = 100 * summary.trainable / max(1, summary.parameters)
    processes = f", {summary.processes} processes" if summary.processes > 1 else ""
    tokens = "" if summary.tokens is None else f", {summary.tokens:,} tokens"
    rows = "streamed" if summary.rows is None else f"{summary.rows:,} samples"
    lines = [
        f"model    {summary.model}, {summary.dtype} on {summary.device}{processes}",
        f"method   {summary.method}; {summary.trainable:,} of {summary.parameters:,} trained ({share:.2f} %)",
        f"data     {rows}{tokens}; {summary.validation_rows:,} for validation",
        f"course   {summary.steps:,} steps of {summary.samples_per_step}, learning rate {summary.learning_rate:g}",
    ]
    if summary.memory is not None:
        free = console.human_bytes(summary.free)
        lines.append(f"memory   about {console.human_bytes(summary.memory)} at the peak, {free} were free")
    return [*lines, f"resumed  from step {summary.resumed:,}"] if summary.resumed else lines


def metrics_line(row: Mapping[str, Any], total: int) -> str:
    """One line of metrics for people."""
    where = f"step {row['step']}/{total}"
    if "loss" not in row:
        shown = [f"{key} {value:.4f}" for key, value in row.items() if key not in ("step", "epoch", "time")]
        return "  ".join([where, *shown])
    return (
        f"{where}  epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.2e}"
        f"  {row['tokens_per_second']:,.0f} tokens/s"
    )


def data_lines(report: DataReport, validation: int) -> list[str]:
    """What is known of the data before training."""
    counts = report.encoding
    lines = [
        f"{report.rows:,} rows, {report.samples:,} samples ({validation:,} for validation), {report.tokens:,} tokens,"
        f" {report.targets:,} of them carry loss"
    ]
    if counts.too_long:
        lines.append(
            f"{counts.too_long:,} samples are longer than data.max_length: {counts.cut_tokens:,} tokens cut, of which"
            f" {counts.cut_targets:,} would carry loss; {counts.dropped_long:,} samples dropped"
        )
    if counts.dropped_without_target:
        lines.append(f"{counts.dropped_without_target:,} samples dropped, as nothing in them carries loss")
    return lines
