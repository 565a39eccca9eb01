"""The table of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glm4.training.config import TrainingConfig
from glm4.training.methods.lora import add_lora, save_lora, without_lora
from glm4.training.methods.prefix import add_prefix, save_prefix, without_prefix
from glm4.training.methods.weights import train_all, train_last


@dataclass(frozen=True)
class Method:
    """How to train a model.

    Attributes:
        apply: from a frozen model to one of whose parameters some are trained.
        save: writes the adapter into a folder, in PEFT's format, with the name of its base; None: the result is a
            whole model.
        set_aside: the model without its adapter, for as long as the context lasts.
        trains_all: the base is loaded in float32, as all of it is trained.
    """

    apply: Callable[[Any, TrainingConfig], Any]
    save: Callable[[Any, Path, str], None] | None = None
    set_aside: Callable[[Any], AbstractContextManager[Any]] | None = None
    trains_all: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method(add_lora, save_lora, without_lora),
        "ptuning_v2": Method(add_prefix, save_prefix, without_prefix),
        "freeze": Method(train_last),
        "full": Method(train_all, trains_all=True),
    }
)
