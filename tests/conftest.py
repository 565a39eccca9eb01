"""Puts this folder on the import path, so that every test can import the shared helpers (`tiny`, `golden_models`)."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the web page's pictures go: what CI keeps."""
    parser.addoption("--page-screenshots", default="build/page-screenshots", metavar="FOLDER")
