"""The table of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from glm4.training.config import TrainingConfig
from glm4.training.methods.lora import add_lora
from glm4.training.methods.weights import train_all, train_last


@dataclass(frozen=True)
class Method:
    """How to train a model.

    Attributes:
        apply: from a frozen model to one of whose parameters some are trained.
        has_adapter: the result is a folder in PEFT's format; else it is a whole model.
        trains_all: the base is loaded in float32, as all of it is trained.
    """

    apply: Callable[[Any, TrainingConfig], Any]
    has_adapter: bool
    trains_all: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method(add_lora, has_adapter=True),
        "freeze": Method(train_last, has_adapter=False),
        "full": Method(train_all, has_adapter=False, trains_all=True),
    }
)
