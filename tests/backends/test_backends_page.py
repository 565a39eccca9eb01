"""docs/backends.md and its Chinese twin say of every backend what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glm4.backends.base import Capability
from glm4.backends.table import BACKENDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"backends.md": "yes", "zh/backends.md": "有"}


def rows(page: str) -> list[list[str]]:
    """The cells of every line of a table."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize(("page", "yes"), PAGES.items())
def test_capabilities_are_those_of_the_table(page: str, yes: str) -> None:
    header = next(row for row in rows(page) if row[1:] == list(BACKENDS))
    said: dict[str, dict[str, bool]] = {}
    for row in rows(page):
        name = re.search(r"`(\w+)`", row[0])
        if name and len(row) == len(header):
            assert set(row[1:]) <= {yes, "–"}
            said[name[1]] = {backend: cell == yes for backend, cell in zip(header[1:], row[1:], strict=True)}
    assert said == {
        capability.value: {name: capability in row.capabilities for name, row in BACKENDS.items()}
        for capability in Capability
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_backend_says_what_to_install(page: str) -> None:
    said = {row[1].strip("`"): row[2] for row in rows(page) if len(row) == 3}
    assert said.keys() >= BACKENDS.keys()
    for name, row in BACKENDS.items():
        assert ("pip install" in said[name]) == bool(row.extra)
        assert f"glm4[{row.extra}]" in said[name] or not row.extra
