"""Lists of tests that are left out of a peer's suite: an id (of a file, a test or one case), then the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent


def read_list(name: str) -> dict[str, str]:
    """Reasons by id. Lines are `id  # reason`; an empty line or one that begins with # is a comment."""
    reasons: dict[str, str] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.partition("  # ")
            if not reason.strip() or test.strip() in reasons:
                raise ValueError(f"{name}: {line!r} has no reason, or is there twice")
            reasons[test.strip()] = reason.strip()
    return reasons


def deselect(config: pytest.Config, items: list[pytest.Item], name: str) -> None:
    """Take the listed tests out of a collection. An entry that fits nothing is an error: the list is never stale."""
    reasons = read_list(name)
    used: set[str] = set()
    kept: list[Any] = []
    left: list[Any] = []
    for item in items:
        file, _, rest = item.nodeid.partition("::")
        ids = {item.nodeid, file, f"{file}::{rest.partition('[')[0]}"}
        used |= ids & reasons.keys()
        (left if ids & reasons.keys() else kept).append(item)
    stale = reasons.keys() - used
    if stale and not config.getoption("file_or_dir"):
        raise pytest.UsageError(f"{name}: no test fits {', '.join(sorted(stale))}")
    config.hook.pytest_deselected(items=left)
    items[:] = kept
