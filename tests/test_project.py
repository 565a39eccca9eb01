"""Promises about the package itself: small files, a light import, no stray words."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500
SOURCES = [
    path
    for folder in ("src", "csrc", "tests", "tools", "benchmarks")
    for pattern in ("*.py", "*.cpp", "*.h")
    for path in sorted((ROOT / folder).rglob(pattern))
]


def test_there_are_sources() -> None:
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_import_glm4_is_light() -> None:
    """No clock here: what makes an import slow is what it loads, and that is the same on every machine."""
    code = "import sys, glm4; glm4.SamplingParams(); print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "torch", "fastapi", "rich", "jinja2", "tokenizers", "tiktoken", "huggingface_hub"}
    assert not heavy & set(loaded)


def test_type_checkers_are_told_that_the_package_has_types() -> None:
    """PEP 561; .ci/run checks the same of what a wheel installs."""
    assert (importlib.resources.files("glm4") / "py.typed").is_file()


def test_every_public_name_can_be_imported() -> None:
    import glm4

    for name in glm4.__all__:
        assert getattr(glm4, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        glm4.nonsense  # noqa: B018


def test_the_version_stands_in_one_more_place_only() -> None:
    import glm4

    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared.group(1) == glm4.__version__
    assert f"## {glm4.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
