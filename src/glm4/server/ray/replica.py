"""`Replica`: a process on a cluster that loads the models and answers requests; Ray Serve sends it some of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from starlette.applications import Starlette

from glm4.errors import ClusterError, Glm4Error
from glm4.hub.store import Progress
from glm4.llm import LLM
from glm4.server.app import create_app
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.state import ServerState, find_state


class Replica:
    """Ready once all models and their adapters are loaded, so that no request meets one that is loading.

    Args:
        config: of the whole server.
    """

    def __init__(self, config: ServerConfig) -> None:
        loaded = {spec.names: _load(spec) for spec in config.models}
        # The adapters are there already.
        bare = replace(config, models=tuple(replace(spec, adapters={}) for spec in config.models))
        self._make_app = _app_maker(bare, loaded)
        self._served: Starlette | None = None

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application; called once, after `__init__`."""
        self._served = self._make_app()
        return self._served

    def check_health(self) -> None:
        """Called by Ray Serve every few seconds; it replaces a replica for which this raises.

        Raises:
            ClusterError: a model has stopped.
        """
        if self._served is None:
            return
        for model in find_state(self._served, ServerState).models.models:
            if model.engine is not None and model.engine.failed:
                raise ClusterError(f"{model.name} has stopped")


def _app_maker(config: ServerConfig, loaded: dict[tuple[str, ...], LLM]) -> Callable[[], Starlette]:
    def load(spec: ModelSpec, progress: Progress) -> LLM:
        return loaded[spec.names]

    return lambda: create_app(config, load)


def _load(spec: ModelSpec) -> LLM:
    """Load a model and its adapters.

    Raises:
        ClusterError: it cannot be loaded; says where and why.
    """
    try:
        llm = LLM(spec.source, **spec.options)
        for name, path in spec.adapters.items():
            llm.load_adapter(name, str(path))
    except Glm4Error as error:
        raise ClusterError(f"{spec.names[0]} cannot be loaded on {socket.gethostname()}: {error}") from None
    return llm
