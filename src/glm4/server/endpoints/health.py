"""GET /health, /ready and /version."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4 import __version__
from glm4.server.registry import ServedModel
from glm4.server.state import server_state


async def health(request: Request) -> Response:
    """The process lives and answers. 503 only when an engine has stopped and will not come back."""
    models = server_state(request).models.models
    stopped = [model.name for model in models if model.engine is not None and model.engine.failed]
    if stopped:
        return JSONResponse({"status": "failed", "models": stopped}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Every model can answer; until then 503 and how far loading is."""
    registry = server_state(request).models
    if registry.ready:
        return JSONResponse({"status": "ready"})
    stages = {model.name: _stage(model) for model in registry.models}
    return JSONResponse(
        {"status": "failed" if "failed" in stages.values() else "loading", "models": stages},
        status_code=503,
        headers={"Retry-After": "2"},
    )


def _stage(model: ServedModel) -> str:
    if model.error is not None or (model.engine is not None and model.engine.failed):
        return "failed"
    return model.stage if model.engine is None else "ready"


async def version(request: Request) -> Response:
    """Which glm4 this is."""
    return JSONResponse({"version": __version__})
