"""Sizes on the command line, such as 5GB or 512MiB."""

from __future__ import annotations

import re

from glm4.cli.parameters import UsageError

_SIZE = re.compile(r"([0-9]{1,6})([KMGT])(i?)B", re.ASCII)
_UNITS = "KMGT"


def size_bytes(size: str, option: str) -> int:
    """The number that a size means.

    Args:
        option: whose value it is, for the error.

    Raises:
        UsageError: it is not one.
    """
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]):
        raise UsageError(f"{option} is a size such as 5GB or 512MiB, not {size!r}")
    number, unit, binary = match.groups()
    size_of_unit = 1
    for _ in range(_UNITS.index(unit) + 1):
        size_of_unit *= 1024 if binary else 1000
    return int(number) * size_of_unit
