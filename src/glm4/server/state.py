"""`ServerState`: what every endpoint needs. The application holds each app's state, by type; nothing is global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from starlette.applications import Starlette
from starlette.requests import Request

from glm4.server.body import read_json
from glm4.server.config import ServerConfig
from glm4.server.errors import ApiError
from glm4.server.registry import ModelRegistry, Target

if TYPE_CHECKING:
    from glm4.server.metrics import ServerMetrics
    from glm4.server.stores.responses import ThreadedResponseStore

_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerState:
    """One running server."""

    config: ServerConfig
    models: ModelRegistry
    metrics: ServerMetrics
    responses: ThreadedResponseStore

    async def read(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request, within this server's limits."""
        return await read_json(request, limit=self.config.max_body_bytes, seconds=self.config.body_timeout)

    def target(self, body: Mapping[str, Any]) -> Target:
        """The model a body asks for.

        Raises:
            ApiError: no such model, not ready, or `model` is not a string.
        """
        name = body.get("model")
        if name is not None and not isinstance(name, str):
            raise ApiError(400, "model must be a string", "model", "invalid_type")
        return self.models.find(name)


def find_state(app: Starlette, kind: type[_T]) -> _T:
    """The state of this type that one of the apps provides; an endpoint finds the application in `request.app`.

    Raises:
        KeyError: no app provides one.
    """
    return cast(_T, app.state.by_type[kind])


def server_state(request: Request) -> ServerState:
    """The state of the API that serves a request."""
    return find_state(request.app, ServerState)
