"""The two routes of the `remote` backend, one of which a test wants it to find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from glm4.backends.remote import opening
from glm4.backends.remote.completion import COMPLETIONS, GENERATE

__all__ = ["COMPLETIONS", "GENERATE", "ROUTES", "over"]

ROUTES = (GENERATE, COMPLETIONS)


@contextmanager
def over(route: str) -> Iterator[None]:
    """Backends that are opened in here find a server without the token route, if the other one is wanted."""
    with pytest.MonkeyPatch.context() as patch:
        if route == COMPLETIONS:
            patch.setattr(opening, "GENERATE", "/no/such/route")
        yield
