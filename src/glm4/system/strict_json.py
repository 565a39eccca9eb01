"""Arguments for `json.loads` that refuse what Python's json reads beyond JSON."""

from __future__ import annotations

import math
from typing import NoReturn


class NotJsonError(ValueError):
    """A number that Python's json reads but JSON does not have."""


def refuse_constant(name: str) -> NoReturn:
    """For `parse_constant`: NaN and the infinities.

    Raises:
        NotJsonError: always.
    """
    raise NotJsonError(f"{name} is not JSON")


def finite_float(text: str) -> float:
    """For `parse_float`.

    Raises:
        NotJsonError: the number is beyond the largest float.
    """
    number = float(text)
    if not math.isfinite(number):
        raise NotJsonError(f"{text[:32]} is too large a number")
    return number
