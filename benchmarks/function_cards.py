"""A task that no base model knows: a card in the house's JSON for a function of the standard library.

A row has the function's signature and the first line of its docstring, and the card says what a program would ask for:

    shutil.copyfile(src, dst, *, follow_symlinks=True)
    Copy data from src to dst in the most efficient way possible.

    {"lib": "shutil", "fn": "copyfile", "needs": ["src", "dst"], "may": ["follow_symlinks"], "star": false, "verb": ...}

Modules are either trained on or asked about.
"""

from __future__ import annotations

import inspect
import json
import random
import re
from dataclasses import dataclass
from typing import Any

from finetune_data import MODULES, documented

SYSTEM = "Write the card of this function as JSON with the keys lib, fn, needs, may, star and verb."
HELD_OUT = MODULES[::5]
_LONGEST = 160  # characters of the signature


@dataclass(frozen=True)
class Card:
    """One function: what is shown of it, and what is right."""

    shown: str
    fields: dict[str, Any]

    @property
    def prompt(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.shown}]

    @property
    def row(self) -> dict[str, Any]:
        """For training."""
        return {"messages": [*self.prompt, {"role": "assistant", "content": json.dumps(self.fields)}]}

    def right(self, answer: str) -> float:
        """Share of the fields that the first JSON object of an answer has right, whatever stands around it."""
        try:
            found, _ = json.JSONDecoder().raw_decode(answer[answer.index("{") :])
        except ValueError:
            return 0.0
        return sum(found.get(key) == value for key, value in self.fields.items()) / len(self.fields)


def _card(module: str, name: str, value: Any) -> Card | None:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    line = (inspect.getdoc(value) or "").strip().partition("\n")[0]
    verb = re.match(r"[A-Za-z]+", line)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    shown = f"{module}.{name}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"
    if verb is None or len(shown) > _LONGEST or " at 0x" in shown or not bare:
        return None
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [one for one in bare if one.kind not in starred]
    fields = {
        "lib": module,
        "fn": name,
        "needs": [one.name for one in named if one.default is inspect.Parameter.empty],
        "may": [one.name for one in named if one.default is not inspect.Parameter.empty],
        "star": len(named) < len(bare),
        "verb": verb.group().lower(),
    }
    return Card(f"{shown}\n{line[:120]}", fields)


def cards(*, held_out: bool, seed: int = 0) -> list[Card]:
    """All cards of the modules for training, or of the others, in random order."""
    modules = [module for module in MODULES if (module in HELD_OUT) == held_out]
    made = [card for found in documented(modules) if (card := _card(*found)) is not None]
    random.Random(seed).shuffle(made)
    return made
