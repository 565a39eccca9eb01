"""`create_app`: the server assembled from apps, its own and additional ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from glm4.api.schemas import components
from glm4.errors import Glm4Error
from glm4.server import routes
from glm4.server.agent.app import agent_app
from glm4.server.app_parts import App
from glm4.server.config import ServerConfig
from glm4.server.cookies import Cookies
from glm4.server.errors import ApiError, error_response
from glm4.server.memory import RequestMemory, shares
from glm4.server.metrics import ServerMetrics
from glm4.server.middleware import HostCheck, Keys, Origins, RequestLog
from glm4.server.openapi import OPENAPI_JSON, OpenAPI, document
from glm4.server.page.app import page_app
from glm4.server.pages import docs, redirect
from glm4.server.registry import Loader, ModelRegistry
from glm4.server.state import ServerState
from glm4.server.stores.responses import ResponseStore, ThreadedResponseStore
from glm4.system.memory import limit_memory, total_memory


def create_app(config: ServerConfig, load: Loader | None = None, apps: Sequence[App] = ()) -> Starlette:
    """An ASGI application that loads its models in the background once started.

    Args:
        load: creates the `LLM` of a model; None uses `LLM` itself.
        apps: what it serves in addition to the API.

    Raises:
        StoreError: the file of the response store cannot be used.
        ValueError: two apps have the same path, component or type of state.
    """
    mounted = [
        _api(config, load),
        App("llama.cpp", routes=routes.LLAMA_CPP, public=routes.LLAMA_CPP_PUBLIC),
        App("Ollama", routes=routes.OLLAMA),
        agent_app(config.agent),
    ]
    if config.allow_adapter_loading:
        mounted.append(App("adapter loading", operations=routes.ADAPTERS))
    cookies = Cookies(config.api_keys) if config.ui else None
    if cookies is not None:
        mounted.append(page_app(cookies))
    root = Route("/", partial(redirect, to="ui" if config.ui else "docs"))
    mounted += [App("docs", routes=[root], pages=docs.PAGES, public=frozenset({"/"})), *apps]
    public = {"/openapi.json", *(path for app in mounted for path in (*app.public, *(page.path for page in app.pages)))}
    operations = [*(one for app in mounted for one in app.operations), OPENAPI_JSON]
    schemas = {name: schema for app in mounted for name, schema in app.schemas.items()}
    described = OpenAPI(document(operations, schemas, public if config.api_keys else None))
    mounted.append(App("openapi", operations=[OPENAPI_JSON], state=described))
    _check_apart(mounted)
    served = Starlette(
        routes=[route for app in mounted for route in app.all_routes()],
        lifespan=partial(_running, mounted=mounted),
        exception_handlers=dict.fromkeys((ApiError, Glm4Error, HTTPException, Exception), error_response),
        middleware=[
            Middleware(RequestLog),
            Middleware(Origins, config=config),
            Middleware(HostCheck, config=config),
            Middleware(Keys, keys=config.api_keys, public=public, cookies=cookies),
        ],
    )
    served.router.redirect_slashes = False
    served.state.by_type = {type(app.state): app.state for app in mounted}
    served.state.start_error = None
    return served


def _api(config: ServerConfig, load: Loader | None) -> App:
    registry = ModelRegistry(config, load)
    parts = shares(config.max_memory or total_memory(), config.store_max_bytes)
    if config.max_memory is not None:
        limit_memory(config.max_memory - parts.total)  # what loading a model finds free
    store_bytes = parts.store if config.store_path is None else config.store_max_bytes
    # Responses from before there were several keys belong to all who had one.
    open_store = partial(
        ResponseStore, config.store_path, store_bytes, config.store_max_age, shares_old=len(config.api_keys) < 2
    )
    # A file is opened here, so that a server that cannot store responses does not start.
    stored = ThreadedResponseStore(open_store, now=config.store_path is not None)
    memory = RequestMemory(parts, config.body_timeout)

    async def start(app: Starlette) -> None:
        registry.start_loading()

    async def stop(app: Starlette) -> None:
        await registry.close()
        await stored.close()
        memory.waiting.close()

    return App(
        "api",
        operations=routes.API,
        public=routes.API_PUBLIC,
        schemas={**components("openai"), **components("responses"), **components("anthropic"), **components("vllm")},
        state=ServerState(
            config,
            registry,
            ServerMetrics(config.metrics_prefix, registry),
            stored,
            memory,
        ),
        start=start,
        stop=stop,
    )


def _check_apart(mounted: Sequence[App]) -> None:
    """Apps must not shadow each other's paths, components or states."""
    paths = [route for app in mounted for route in app.all_routes()]
    names = [f"{method} {route.path}" for route in paths for method in (route.methods or set()) - {"HEAD"}]
    names += [f"the component {name}" for app in mounted for name in app.schemas]
    kinds = [type(app.state) for app in mounted if app.state is not None]
    names += [f"a state of type {kind.__module__}.{kind.__qualname__}" for kind in kinds]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two apps have {twice[0]}")


@asynccontextmanager
async def _running(app: Starlette, mounted: Sequence[App]) -> AsyncIterator[None]:
    """Start the apps in order; at the end, stop the started ones in reverse order, whatever goes wrong."""
    async with AsyncExitStack() as started:
        for one in mounted:
            if one.start is not None:
                try:
                    await one.start(app)
                except Exception as error:
                    app.state.start_error = Glm4Error(f"the server cannot start: {one.name}: {error}")
                    raise
            if one.stop is not None:
                started.push_async_callback(one.stop, app)
        yield
