"""GET /v1/models and /v1/models/{id}: what a request's `model` may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.backends.base import Capability
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


def _objects(models: ModelRegistry) -> Iterator[dict[str, Any]]:
    for model in models.models:
        for name in model.spec.names or (model.name,):
            if name != ANY_MODEL:
                yield _object(model, name, root=model.name, parent=None)
        if model.spec.names == (ANY_MODEL,):
            yield _object(model, model.name, root=model.name, parent=None)
        for name in models.adapters(model):
            yield _object(model, name, root=name, parent=model.name)


def _object(model: ServedModel, name: str, *, root: str, parent: str | None) -> dict[str, Any]:
    length = model.llm.info.max_model_len if model.engine is not None else None
    sees = (
        model.engine is not None
        and model.llm.processor.image is not None
        and Capability.MEDIA in model.llm.info.capabilities
    )
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "glm4",
        "root": root,
        "parent": parent,
        "max_model_len": length,
        "capabilities": ["completion", "multimodal"] if sees else ["completion"],
    }
