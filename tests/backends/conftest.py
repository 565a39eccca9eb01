"""One opened backend at a time for the contract suite, shared by its files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract import ENTRIES, SCRIPTED, Entry, Files, Subject, open_local

from glm4.backends.base import Backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Backends of the table; the fake one only where what it does is no computation."""
    if "subject" in metafunc.fixturenames:
        entries = ENTRIES + ((SCRIPTED,) if getattr(metafunc.module, "WITH_SCRIPTED", False) else ())
        params = [pytest.param(entry, id=entry.name, marks=entry.marks) for entry in entries]
        metafunc.parametrize("subject", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.write(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, files: Files) -> Iterator[Subject]:
    entry: Entry = request.param
    opened = Subject(entry, files)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def reference(files: Files) -> Iterator[Backend]:
    """Our engine in float32, which answers one request at a time."""
    with open_local(files) as llm:
        yield llm.backend
