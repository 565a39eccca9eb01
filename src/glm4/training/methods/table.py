"""The table of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from glm4.training.config import TrainingConfig
from glm4.training.methods.lora import add_lora

# A method's name -> from a frozen model to one of whose parameters some are trained.
METHODS: Mapping[str, Callable[[Any, TrainingConfig], Any]] = MappingProxyType({"lora": add_lora})
