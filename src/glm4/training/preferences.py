"""DPO as a part of a run: which objective, and the rows with what it needs to know of the reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from glm4.training.dpo import Collate, DpoObjective
from glm4.training.dpo_references import with_references
from glm4.training.listener import Listener
from glm4.training.methods.table import METHODS
from glm4.training.run import Prepared
from glm4.training.run_folder import REFERENCES, VALIDATION_REFERENCES


def preference_rows(
    run: Prepared, model: Any, make: Collate, listener: Listener, *, bf16: bool
) -> tuple[DpoObjective, Any, Any]:
    """The objective, and the rows of training and validation.

    An adapter is set aside for the reference; where weights themselves are trained, its log-probabilities are computed
    here, before the first step, and kept in the run's folder.

    Args:
        model: as the method has made it, before any training.
        make: a batch of examples.
        bf16: whether it is going to compute in bfloat16.
    """
    config = run.config
    set_aside = METHODS[config.method].set_aside
    if set_aside is not None:
        return DpoObjective(make, config.dpo_beta, set_aside), run.train, run.validation
    objective = DpoObjective(make, config.dpo_beta)
    device = next(model.parameters()).device

    def logprobs(pairs: Any) -> torch.Tensor:
        batch = {name: tensor.to(device) for name, tensor in objective.collate(pairs).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return objective.references(model, batch).float().cpu()

    parts: tuple[tuple[str, Any], ...] = ((REFERENCES, run.train), (VALIDATION_REFERENCES, run.validation))
    found = [
        with_references(
            rows,
            logprobs,
            Path(config.output) / name,
            model=run.name,
            batch_size=config.per_device_eval_batch_size,
            progress=partial(listener.loading, "reading the reference's answers"),
        )
        for name, rows in parts
    ]
    return objective, found[0], found[1]
