"""GET /v1/models and /v1/models/{id}: what a request's `model` may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.backends.base import Capability
from glm4.llm import LLM
from glm4.server.config import ANY_MODEL
from glm4.server.errors import ApiError
from glm4.server.registry import ModelRegistry, ServedModel
from glm4.server.state import server_state


async def list_models(request: Request) -> Response:
    """Every name, aliases and adapters included."""
    data = list(_objects(server_state(request).models))
    # llama.cpp's clients look there.
    models = [{"name": one["id"], "model": one["id"], "capabilities": one["capabilities"]} for one in data]
    return JSONResponse({"object": "list", "data": data, "models": models})


async def retrieve_model(request: Request) -> Response:
    """One of them."""
    name = request.path_params["model"]
    for entry in _objects(server_state(request).models):
        if entry["id"] == name:
            return JSONResponse(entry)
    raise ApiError(404, f"the model {name!r} does not exist", "model", "model_not_found")


def served_names(models: ModelRegistry) -> Iterator[tuple[ServedModel, str, str | None]]:
    """What a request's `model` may be: the model, a name of it or of an adapter, and an adapter's parent."""
    for model in models.models:
        for name in model.spec.names or (model.name,):
            if name != ANY_MODEL:
                yield model, name, None
        if model.spec.names == (ANY_MODEL,):
            yield model, model.name, None
        for name in models.adapters(model):
            yield model, name, model.name


def sees(llm: LLM) -> bool:
    """Whether a model takes pictures."""
    return llm.processor.image is not None and Capability.MEDIA in llm.info.capabilities


def _objects(models: ModelRegistry) -> Iterator[dict[str, Any]]:
    for model, name, parent in served_names(models):
        llm = model.llm if model.engine is not None else None
        yield {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "glm4",
            "root": model.name if parent is None else name,
            "parent": parent,
            "max_model_len": None if llm is None else llm.context(None if parent is None else name),
            "capabilities": ["completion", "multimodal"] if llm is not None and sees(llm) else ["completion"],
        }
