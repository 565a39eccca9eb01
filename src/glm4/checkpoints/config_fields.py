"""Typed, bounds-checked access to the values of an untrusted configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from glm4.errors import CheckpointError

# The naming scheme of a checkpoint's tensors, a key of `sources` in model/tensors.py.
Layout = Literal["chatglm", "hf", "gguf", "packed"]

_MAX_STOP_IDS = 64
_MAX_TOKEN_ID = 1 << 31


class Fields:
    """A mapping whose values are checked as they are read; a JSON null counts as absent.

    Args:
        values: the configuration.
        where: its name in error messages.
        prefix: prepended to every key.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self.where = where

    def _get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def _fault(self, key: str, expected: str) -> CheckpointError:
        value = self._get(key)
        if value is None:
            return CheckpointError(f"{self.where} lacks {self._prefix + key} ({expected})")
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return CheckpointError(f"{self.where}: {self._prefix + key} must be {expected}, not {shown}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self._get(key) is not None

    def text(self, key: str, *, default: str) -> str:
        """A string; `default` if the key is absent."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._fault(key, "a string")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]; `default` if the key is absent, an error if there is no default."""
        value = self._get(key)
        if value is None and default is not None:
            value = default
        if type(value) is not int or not low <= value <= high:
            raise self._fault(key, f"a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """An integer, or None if the key is absent."""
        value = self._get(key)
        if value is not None and type(value) is not int:
            raise self._fault(key, "a whole number")
        return value

    def number(self, key: str, above: float, high: float, default: float | None = None) -> float:
        """A finite number in (above, high], or equal to a positive `above`; `default` if the key is absent."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float):
            raise self._fault(key, "a number")
        # Compared before the conversion: an integer of 400 digits does not fit a float.
        inside = value <= high and (value >= above if above > 0 else value > above)
        if not inside or not math.isfinite(value):
            raise self._fault(key, f"a number between {above:g} and {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false; `default` if the key is absent."""
        value = self._get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._fault(key, "true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty if the key is absent."""
        value = self._get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if len(ids) > _MAX_STOP_IDS or not all(type(item) is int and 0 <= item < _MAX_TOKEN_ID for item in ids):
            raise self._fault(key, f"a token id or a list of at most {_MAX_STOP_IDS}")
        return tuple(ids)

    def token_id(self, key: str) -> int | None:
        """A token id; None if the key is absent or negative (some files write -1 for "none")."""
        value = self.optional_integer(key)
        return value if value is not None and 0 <= value < _MAX_TOKEN_ID else None

    def inner(self, key: str) -> Fields:
        """The object under a key; an empty one if the key is absent."""
        value = self._get(key)
        if value is not None and not isinstance(value, dict):
            raise self._fault(key, "an object")
        return Fields(value or {}, f"{self.where}: {key}")
