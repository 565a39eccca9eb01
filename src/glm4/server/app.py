"""`create_app`: the route table, and the server put together. One endpoint, one file, one line here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from glm4.errors import Glm4Error
from glm4.server import openapi
from glm4.server.config import ServerConfig
from glm4.server.endpoints import (
    adapters,
    chat_completions,
    completions,
    embeddings,
    health,
    llama_cpp,
    messages,
    metrics,
    models,
    responses,
    tokenize,
)
from glm4.server.errors import ApiError, error_response
from glm4.server.metrics import ServerMetrics
from glm4.server.middleware import HostCheck, Keys, Origins, RequestLog
from glm4.server.pages import docs
from glm4.server.registry import Loader, ModelRegistry
from glm4.server.state import ServerState
from glm4.server.stores.responses import ResponseStore, ThreadedResponseStore

ROUTES = [
    Route("/v1/chat/completions", chat_completions.chat_completions, methods=["POST"]),
    Route("/v1/chat/completions/render", tokenize.render, methods=["POST"]),
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/responses", responses.create, methods=["POST"]),
    Route("/v1/responses/input_tokens", responses.count_tokens, methods=["POST"]),
    Route("/v1/responses/{response_id}", responses.retrieve, methods=["GET"]),
    Route("/v1/responses/{response_id}", responses.delete, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", responses.cancel, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", responses.list_input_items, methods=["GET"]),
    Route("/v1/embeddings", embeddings.embeddings, methods=["POST"]),
    Route("/v1/messages", messages.messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
    Route("/v1/models", models.list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", models.retrieve_model, methods=["GET"]),
    Route("/tokenize", tokenize.tokenize, methods=["POST"]),
    Route("/detokenize", tokenize.detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenize.tokenizer_info, methods=["GET"]),
    Route("/health", health.health, methods=["GET"]),
    Route("/ready", health.ready, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
    Route("/metrics", metrics.metrics, methods=["GET"]),
    Route("/openapi.json", openapi.openapi_json, methods=["GET"]),
]
"""The API: each route has a row in `operations.OPERATIONS`, which describes it."""

PAGES = [
    Route("/", docs.root, methods=["GET"]),
    Route("/docs", docs.docs, methods=["GET"]),
    Route("/docs/{file}", docs.docs_file, methods=["GET"]),
]
"""For people with a browser."""

LLAMA_CPP_ROUTES = [
    Route("/completion", llama_cpp.completion, methods=["POST"]),
    Route("/completions", llama_cpp.completion, methods=["POST"]),
    Route("/chat/completions", chat_completions.chat_completions, methods=["POST"]),
    Route("/chat/completions/input_tokens", llama_cpp.input_tokens, methods=["POST"]),
    Route("/v1/chat/completions/input_tokens", llama_cpp.input_tokens, methods=["POST"]),
    Route("/apply-template", llama_cpp.apply_template, methods=["POST"]),
    Route("/models", models.list_models, methods=["GET"]),
    Route("/props", llama_cpp.props, methods=["GET"]),
    Route("/slots", llama_cpp.slots, methods=["GET"]),
    Route("/v1/health", health.health, methods=["GET"]),
]
"""What programs for llama.cpp's server ask for beside OpenAI's paths."""

ADAPTER_ROUTES = [
    Route("/v1/load_lora_adapter", adapters.load_adapter, methods=["POST"]),
    Route("/v1/unload_lora_adapter", adapters.unload_adapter, methods=["POST"]),
]
"""Only with `allow_adapter_loading`."""


def create_app(config: ServerConfig, load: Loader | None = None) -> Starlette:
    """An ASGI application that loads its models in the background once it is started.

    Args:
        load: makes the `LLM` of a model; None loads it as `LLM` does.

    Raises:
        StoreError: the file of stored responses cannot be used.
    """
    registry = ModelRegistry(config, load)
    open_store = partial(ResponseStore, config.store_path, config.store_max_bytes, config.store_max_age)
    # A file is opened here: a server that cannot keep its promise does not start.
    stored = ThreadedResponseStore(open_store, now=config.store_path is not None)
    state = ServerState(config, registry, ServerMetrics(config.metrics_prefix, registry), stored)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        registry.start_loading()
        try:
            yield
        finally:
            await registry.close()
            await stored.close()

    app = Starlette(
        routes=[
            *ROUTES,
            *PAGES,
            *LLAMA_CPP_ROUTES,
            *(ADAPTER_ROUTES if config.allow_adapter_loading else []),
        ],
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((ApiError, Glm4Error, HTTPException, Exception), error_response),
        middleware=[
            Middleware(RequestLog),
            Middleware(Origins, config=config),
            Middleware(HostCheck, config=config),
            Middleware(Keys, keys=config.api_keys),
        ],
    )
    app.router.redirect_slashes = False
    app.state.glm4 = state
    return app
