"""What a run minimizes, as one module whose forward gives the loss: that is what launchers wrap and compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

Batch = Mapping[str, Any]


class Objective(Protocol):
    """A loss that is a mean over items: target tokens, or pairs of answers."""

    def count(self, batch: Batch) -> int:
        """Items of a batch, before the model sees it."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Sum of the loss over the items of a batch, float32 scalar, differentiable."""


class LossModel(torch.nn.Module):
    """A model whose forward is its loss.

    DDP, FSDP and DeepSpeed act around `forward` of the module that they wrap, so the loss is computed inside of it.

    Args:
        model: a class of transformers, or PEFT's wrapper of one.
    """

    accepts_loss_kwargs = True  # the trainer passes no number of items, and must not divide by steps either

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP wraps these layers

    def forward(self, **batch: Any) -> torch.Tensor:
        """The sum of the loss over a batch."""
        return self.objective.loss(self.model, batch)
