"""Fixtures of the sandbox's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandboxes import USERS, Box, open_box


@pytest.fixture(scope="module", params=USERS)
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    yield from open_box(request.param)
