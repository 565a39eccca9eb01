"""`ServerState`: what every endpoint needs. The application holds each app's state, by type; nothing is global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from starlette.applications import Starlette
from starlette.requests import Request

from glm4.server.body import read_json
from glm4.server.config import ServerConfig
from glm4.server.errors import ApiError
from glm4.server.identity import KEY_ID, cache_salt
from glm4.server.memory import BODY_MEMORY, RequestMemory
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
    memory: RequestMemory

    async def read(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request, within this server's limits."""
        config, memory = self.config, self.memory.body()
        request.scope["state"][BODY_MEMORY] = memory  # released at the end of the request
        body: dict[str, Any] = await read_json(
            request, memory, limit=config.max_body_bytes, seconds=config.body_timeout
        )
        return body

    def target(self, request: Request, body: Mapping[str, Any]) -> Target:
        """The model a body asks for, and whose cached prompts it may reuse.

        Raises:
            ApiError: no such model, not ready, or `model` or `cache_salt` is not a string.
        """
        name, salt = body.get("model"), body.get("cache_salt")
        if name is not None and not isinstance(name, str):
            raise ApiError(400, "model must be a string", "model", "invalid_type")
        # With one key, or none, all clients are one party.
        key_id = request.scope["state"].get(KEY_ID, "") if len(self.config.api_keys) > 1 else ""
        # The type of a salt is checked with the other fields, by those APIs that have it.
        return replace(self.models.find(name), salt=cache_salt(key_id, salt if isinstance(salt, str) else None))


def find_state(app: Starlette, kind: type[_T]) -> _T:
    """The state of this type that one of the apps provides; an endpoint finds the application in `request.app`.

    Raises:
        KeyError: no app provides one.
    """
    return cast(_T, app.state.by_type[kind])


def server_state(request: Request) -> ServerState:
    """The state of the API that serves a request."""
    return find_state(request.app, ServerState)
