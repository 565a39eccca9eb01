"""GET /health, /ready and /version."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4 import __version__
from glm4.server.registry import ServedModel
from glm4.server.state import server_state


async def health(request: Request) -> Response:
    """Whether the process is alive. 503 only if an engine has stopped for good."""
    models = server_state(request).models.models
    stopped = [model.name for model in models if model.engine is not None and model.engine.failed]
    if stopped:
        return JSONResponse({"status": "failed", "models": stopped}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether every model can answer; until then 503 and the progress of loading."""
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
    return model.stage if model.state == "loading" else model.state


async def version(request: Request) -> Response:
    """The version of glm4."""
    return JSONResponse({"version": __version__})
