"""What a run minimizes, as one module whose forward gives the loss: that is what launchers wrap and compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from glm4.training.data.examples import TokenizedExample
from glm4.training.forward import forward_loss

Batch = Mapping[str, Any]


class Objective(Protocol):
    """A loss that is a mean over items: target tokens, or pairs of answers."""

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The tensors of some rows."""

    def count(self, batch: Batch) -> int:
        """Items of a batch, before the model sees it."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Sum of the loss over the items of a batch, float32 scalar, differentiable."""

    def metrics(self, *, training: bool) -> dict[str, float]:
        """What else was measured since the last call, in all processes; each of them calls it."""


class SupervisedObjective:
    """Cross-entropy of the target tokens.

    Args:
        collate: makes a batch of examples; see `batches`.
    """

    def __init__(self, collate: Callable[[Sequence[TokenizedExample]], Mapping[str, Any]]) -> None:
        self._collate = collate

    def collate(self, rows: Sequence[TokenizedExample]) -> dict[str, Any]:
        """A batch."""
        return dict(self._collate(rows))

    def count(self, batch: Batch) -> int:
        """Target tokens."""
        return int(batch["loss_mask"][:, 1:].sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """As `Objective`."""
        return forward_loss(model, batch)[0]

    def metrics(self, *, training: bool) -> dict[str, float]:
        """Nothing else."""
        return {}


class LossModel(torch.nn.Module):
    """A model whose forward is its loss.

    DDP, FSDP and DeepSpeed act around `forward` of the module that they wrap, so the loss is computed inside of it.

    Args:
        model: a class of transformers, or PEFT's wrapper of one.
    """

    accepts_loss_kwargs = True  # the trainer must not divide by the number of accumulated batches

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP wraps these layers

    def forward(self, **batch: Any) -> torch.Tensor:
        """The sum of the loss over a batch."""
        return self.objective.loss(self.model, batch)
