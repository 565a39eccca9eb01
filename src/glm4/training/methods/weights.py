"""Training the weights themselves: all of them, or those of the last layers.

What is trained is float32, also where the computation is in bfloat16: its 8 bits would swallow most updates.
"""

from __future__ import annotations

from typing import Any

import torch

from glm4.errors import InvalidRequestError
from glm4.training.config import TrainingConfig
from glm4.training.vision.loading import PREFIX
from glm4.training.vision.targets import stays_frozen


def train_all(model: Any, config: TrainingConfig) -> Any:
    """Every weight; of a model that sees, those of tower and projector as the configuration says."""
    for name, parameter in model.named_parameters():
        if not stays_frozen(name, config):
            _train(parameter)
    return model


def train_last(model: Any, config: TrainingConfig) -> Any:
    """All but the embedding and the first `freeze_layers` layers. An output head that is the embedding stays, too.

    Of a model that sees, tower and projector are trained as the configuration says.

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
    for name, parameter in model.named_parameters():
        if name.startswith(PREFIX) and not stays_frozen(name, config):
            _train(parameter)
    return model


def _train(parameter: torch.nn.Parameter) -> None:
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
