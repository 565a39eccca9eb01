"""Whoever watches a run from within its process: the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a run is about to do.

    Attributes:
        model: the name that the adapter has for its base.
        method: as the user calls it: "lora", "qlora", "dora", "ptuning_v2", "freeze", "full".
        device, dtype: where and in what it computes.
        trainable, parameters: numbers that are trained, and all.
        rows, validation_rows: of data; None for a stream.
        tokens: of the training rows; None for a stream.
        steps: optimizer steps of the whole run.
        samples_per_step: of all processes; with packing, packs.
        processes: that train together.
        learning_rate: its greatest value.
        resumed: the step from which the run goes on; 0 from the beginning.
        memory: estimated bytes of one process at its peak; None for models that see, whose pictures nobody estimates.
        free: bytes that were free on the device before anything was loaded.
    """

    model: str
    method: str
    device: str
    dtype: str
    trainable: int
    parameters: int
    rows: int | None
    validation_rows: int
    tokens: int | None
    steps: int
    samples_per_step: int
    processes: int
    learning_rate: float
    resumed: int
    memory: int | None
    free: int


class Listener:
    """Is told what happens; does nothing by itself."""

    def loading(self, stage: str, done: float, total: float) -> None:
        """Something long before the first step."""

    def note(self, text: str) -> None:
        """Something to know before it is too late."""

    def started(self, summary: Summary) -> None:
        """Everything is ready."""

    def stepped(self, step: int, total: int) -> None:
        """An optimizer step was taken."""

    def logged(self, row: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is complete."""
