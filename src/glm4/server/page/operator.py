"""GET /ui/operator: models, memory, an hour of load, and what went wrong. For who runs the server only."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.server.errors import ApiError
from glm4.server.page.session import is_operator
from glm4.server.page.state import NO_STORE, page_state
from glm4.server.page.watch import Values, current
from glm4.server.registry import ModelRegistry, ServedModel
from glm4.server.state import server_state
from glm4.system.memory import Room, resident_memory, total_memory


async def operator(request: Request) -> Response:
    """Everything at once; the page asks again every few seconds while it shows it."""
    if not is_operator(request):
        raise ApiError(403, "this is for the operator: who has the first key of the server", code="not_operator")
    server, watch = server_state(request), page_state(request).watch
    values, room = current(server), Room.here()
    described = {
        "models": [_model(model, server.models, values) for model in server.models.models],
        "memory": {
            "process": resident_memory(),
            "allocated": room.taken,
            "available": room.free,
            "total": total_memory(),
        },
        "uptime": watch.uptime,
        "history": watch.history(),
        "errors": list(watch.log.records),
    }
    return JSONResponse(described, headers=NO_STORE)


def _model(model: ServedModel, models: ModelRegistry, values: Values) -> dict[str, Any]:
    def value(name: str) -> float:
        return values.get(name, {}).get(model.name, 0.0)

    queries = value("prefix_cache_queries_total")
    return {
        "name": model.name,
        "source": model.spec.source,
        "state": model.state,
        "stage": model.stage,
        "progress": model.progress if model.engine is None else None,
        "error": model.error,
        "context": None if model.engine is None else model.llm.info.max_model_len,
        "adapters": list(models.adapters(model)),
        "running": int(value("num_requests_running")),
        "waiting": int(value("num_requests_waiting")),
        "kv_pages_used": int(value("kv_pages_used")),
        "kv_pages_total": int(value("kv_pages_total")),
        "prefix_hit_rate": round(value("prefix_cache_hits_total") / queries, 4) if queries else None,
        "prompt_tokens": int(value("prompt_tokens_total")),
        "generation_tokens": int(value("generation_tokens_total")),
    }
