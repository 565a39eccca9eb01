"""`PageState`: what the endpoints of the page need."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from glm4.server.agent.reading import Readers, Shared
from glm4.server.cookies import Cookies
from glm4.server.page.attempts import Attempts
from glm4.server.page.kept_artifacts import Artifacts
from glm4.server.page.watch import Watch
from glm4.server.state import find_state

RENDERING_THREADS = 2


@dataclass
class PageState:
    """The page of one server.

    Attributes:
        cookies: sessions of browsers.
        attempts: to log in.
        artifacts: that were shown last.
        rendering: threads that make HTML, apart from those that other requests need.
        watch: what the operator sees of the last hour.
    """

    cookies: Cookies
    attempts: Attempts = field(default_factory=Attempts)
    artifacts: Artifacts = field(default_factory=Artifacts)
    rendering: Shared = field(default_factory=lambda: Shared(Readers(RENDERING_THREADS)))
    watch: Watch = field(default_factory=Watch)

    def warm_up(self) -> None:
        """Load what makes HTML, while nobody waits for it."""
        self._loading = asyncio.ensure_future(self.rendering.of("").run(lambda: importlib.import_module("glm4.markup")))


def page_state(request: Request) -> PageState:
    """The state of the page that a request is for."""
    return find_state(request.app, PageState)


NO_STORE: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of answers that are one person's."""
