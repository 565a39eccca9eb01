"""Training the weights themselves: all of them, or those of the last layers.

What is trained is float32, also where the computation is in bfloat16: its 8 bits would swallow most updates.
"""

from __future__ import annotations

from typing import Any

import torch

from glm4.errors import InvalidRequestError
from glm4.training.config import TrainingConfig


def train_all(model: Any, config: TrainingConfig) -> Any:
    """Every weight."""
    for parameter in model.parameters():
        _train(parameter)
    return model


def train_last(model: Any, config: TrainingConfig) -> Any:
    """All but the embedding and the first `freeze_layers` layers. An output head that is the embedding stays, too.

    Raises:
        InvalidRequestError: the model has no more layers than that.
    """
    layers = model.model.layers
    if config.freeze_layers >= len(layers):
        raise InvalidRequestError(
            f"freeze_layers is below the model's {len(layers)} layers, not {config.freeze_layers}",
            param="freeze_layers",
        )
    head = model.get_output_embeddings()
    free = [*layers[config.freeze_layers :], model.model.norm]
    if head.weight is not model.get_input_embeddings().weight:
        free.append(head)
    for module in free:
        for parameter in module.parameters():
            _train(parameter)
    return model


def _train(parameter: torch.nn.Parameter) -> None:
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
