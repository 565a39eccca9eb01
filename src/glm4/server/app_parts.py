"""`App`: a part of the server. `create_app` assembles it from its own and from additional ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.routing import Route

from glm4.api.schemas import Schema
from glm4.server.operations import Operation
from glm4.server.pages import Page


@dataclass(frozen=True)
class App:
    """A part of the server: its paths, state, startup and shutdown. The server handles keys, hosts, origins and errors.

    Attributes:
        name: used in errors.
        operations: paths described in /openapi.json.
        routes: paths not described there.
        pages: files for browsers; open without a key.
        public: other paths that are open without a key, as they are requested.
        schemas: components that the operations refer to, in addition to the API's.
        state: what its endpoints need; `find_state(request.app, its class)` returns it.
        start: runs before the first request, in app order; an error stops the server.
        stop: runs after the last request, in reverse order, if the start succeeded.
    """

    name: str
    operations: Sequence[Operation] = ()
    routes: Sequence[Route] = ()
    pages: Sequence[Page] = ()
    public: frozenset[str] = frozenset()
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    state: object = None
    start: Callable[[Starlette], Awaitable[None]] | None = None
    stop: Callable[[Starlette], Awaitable[None]] | None = None

    def all_routes(self) -> list[Route]:
        """Including those of operations and pages."""
        return [*(one.route() for one in self.operations), *(page.route() for page in self.pages), *self.routes]
