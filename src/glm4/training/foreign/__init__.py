"""Configurations and data descriptions of other training tools, read where they mean the same here. Needs no torch.

A key that means something that is not done here is refused by name, with the reason; one that does no harm is
accepted, and a note says so. What a file leaves out has that tool's default, not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm4.training.config import TrainingConfig
from glm4.training.foreign import llama_factory, ms_swift
from glm4.training.foreign.rules import Draft

_TOOLS = (llama_factory, ms_swift)


@dataclass(frozen=True)
class ForeignConfig:
    """A configuration of another tool, as ours.

    Attributes:
        tool: whose it was.
        notes: a line per accepted key that works differently, or is not needed.
    """

    config: TrainingConfig
    tool: str
    notes: tuple[str, ...]


def read(raw: Mapping[str, Any]) -> ForeignConfig | None:
    """The configuration in the keys of a YAML or JSON file; None if they are of no other tool.

    Raises:
        InvalidRequestError: keys are unknown, malformed or mean something that is not done; all of them are named.
    """
    for tool in _TOOLS:
        if any(sign in raw for sign in tool.SIGNS):
            draft = Draft(tool.NAME, raw)
            tool.read(draft)
            return ForeignConfig(draft.config(), tool.NAME, tuple(draft.notes))
    return None
