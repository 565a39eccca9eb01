"""What the trainer tells the run's folder and the listener, and what signals tell the trainer."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from glm4.training.listener import Listener
from glm4.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    from glm4.training.trainer import GlmTrainer

_STATUS_SECONDS = 2.0
_DIGITS = {"learning_rate": 12, "tokens_per_second": 2, "epoch": 6}


class Reporter(transformers.TrainerCallback):
    """Writes metrics and status; for the one process that writes.

    Args:
        log: None in processes that write nothing.
    """

    def __init__(self, log: MetricsLog | None, listener: Listener) -> None:
        self._log, self._listener = log, listener
        self._began = self._stepped = time.monotonic()
        self._status_due = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step is next."""
        self._began = self._stepped = time.monotonic()
        if self._log:
            self._log.status(state="running", step=state.global_step, total_steps=state.max_steps, epoch=state.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell how far it is; the last step is always logged."""
        control.should_log |= state.global_step >= state.max_steps
        self._stepped = time.monotonic()
        self._listener.stepped(state.global_step, state.max_steps)
        if self._log and time.monotonic() > self._status_due:
            self._status_due = time.monotonic() + _STATUS_SECONDS
            self._log.status(step=state.global_step, epoch=round(state.epoch, 6))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A line of metrics."""
        row = {"step": state.global_step, "epoch": logs["epoch"], "time": round(time.time(), 3), **logs}
        if "num_tokens" in row:
            elapsed = max(time.monotonic() - self._began, 1e-9)
            row["tokens_per_second"] = row.pop("num_tokens") / elapsed
            self._began = time.monotonic()
        row = {key: round(value, _DIGITS[key]) if key in _DIGITS else value for key, value in row.items()}
        if self._log:
            self._log.append(row)
            self._listener.logged(row)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What this took is no training time."""
        self._redraw()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is there."""
        self._redraw()
        if self._log:
            self._listener.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _redraw(self) -> None:
        if self._log:
            self._log.plot()
        now = time.monotonic()
        self._began += now - self._stepped
        self._stepped = now


class Stopper(transformers.TrainerCallback):
    """Saves and stops after the step in which a signal came."""

    def __init__(self, trainer: GlmTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See the class."""
        if self._trainer.interrupted and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False


@contextlib.contextmanager
def stop_on_signals(trainer: GlmTrainer) -> Iterator[None]:
    """SIGINT and SIGTERM save and stop after the present step; the second one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        trainer.stop_requested = True
        signal.signal(number, earlier[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        earlier[wanted] = signal.signal(wanted, stop)
    try:
        yield
    finally:
        for changed, handler in earlier.items():
            signal.signal(changed, handler)
