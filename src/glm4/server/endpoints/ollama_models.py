"""GET /api/tags, /api/ps and /api/version, POST /api/show and /api/pull: Ollama's names for what is served.

The models are those the server was started with: they cannot be created, copied, deleted or sent elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4 import __version__
from glm4.api.fields import read_fields
from glm4.api.ollama.fields import PULL_FIELDS, SHOW_FIELDS
from glm4.backends.base import Capability
from glm4.llm import LLM
from glm4.model.tensors import num_parameters
from glm4.server.endpoints.models import sees, served_names
from glm4.server.errors import ApiError
from glm4.server.memory import parse
from glm4.server.registry import ServedModel, Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import EventStream, json_line, ollama_failure

API_VERSION = "0.12.11"
"""The release of Ollama whose API this is: programs look for the oldest that has what they need."""

_TAG = ":latest"
_NEVER = "9999-12-31T23:59:59Z"


def find_target(state: ServerState, request: Request, body: Mapping[str, Any]) -> Target:
    """The model a body names; `name:latest` is `name`, as for Ollama.

    Raises:
        ApiError: no name (400), no such model (404), or it is not ready (503).
    """
    name = body.get("model") or body.get("name")
    if not isinstance(name, str):
        raise ApiError(400, "model is required, as a text", "model")
    for candidate in dict.fromkeys((name, name.removesuffix(_TAG))):
        try:
            return state.target(request, {"model": candidate})
        except ApiError as error:
            if error.status != 404:
                raise
    raise ApiError(404, f"model {name[:200]!r} not found; GET /api/tags lists those served", "model")


async def tags(request: Request) -> Response:
    """Every name a request may use."""
    return JSONResponse({"models": [_entry(*one) for one in served_names(server_state(request).models)]})


async def running(request: Request) -> Response:
    """The models that are loaded; they stay so."""
    models = [
        {
            **_entry(model, name, parent),
            "expires_at": _NEVER,
            "size_vram": 0,
            "context_length": model.llm.info.max_model_len,
        }
        for model, name, parent in served_names(server_state(request).models)
        if model.engine is not None
    ]
    return JSONResponse({"models": models})


async def version(request: Request) -> Response:
    """The API's version, and ours."""
    return JSONResponse({"version": API_VERSION, "glm4": __version__})


async def show(request: Request) -> Response:
    """What a model is and can do."""
    state = server_state(request)
    body = await state.read(request)
    await parse(partial(read_fields, body, SHOW_FIELDS))
    target = find_target(state, request, body)
    parameters = _parameters(target.llm)
    lines = [f"FROM {target.model.name}", *(f"PARAMETER {line}" for line in parameters)]
    return JSONResponse(
        {
            "modelfile": "\n".join(lines),
            "parameters": "\n".join(parameters),
            "template": target.llm.processor.chat_template.source,
            "details": _details(target.model, None if target.adapter is None else target.model.name),
            "model_info": _model_info(target.llm, target.model.name),
            "capabilities": _capabilities(target.llm),
            "modified_at": _time(target.model.created),
        }
    )


async def pull(request: Request) -> Response:
    """Succeeds for what is served already, and loads nothing else."""
    state = server_state(request)
    body = await state.read(request)
    given = await parse(partial(read_fields, body, PULL_FIELDS))
    find_target(state, request, body)
    done = {"status": "success"}
    if not given.get("stream", True):
        return JSONResponse(done)

    async def lines() -> AsyncGenerator[bytes, None]:
        yield json_line(done)

    return EventStream(lines(), failure=ollama_failure, media_type="application/x-ndjson", config=state.config)


async def not_done(request: Request) -> Response:
    """What changes the models of a server."""
    raise ApiError(501, "this server's models are those it was started with: glm4 serve -m MODEL")


def _entry(model: ServedModel, name: str, parent: str | None) -> dict[str, Any]:
    execution = model.llm.info.execution if model.engine is not None else None
    return {
        "name": name,
        "model": name,
        "modified_at": _time(model.created),
        "size": 0 if execution is None else execution.weight_bytes,
        # Programs tell models apart by it; the weights are not read for it.
        "digest": hashlib.sha256(f"{model.spec.source}\n{name}".encode()).hexdigest(),
        "details": _details(model, parent),
    }


def _details(model: ServedModel, parent: str | None) -> dict[str, Any]:
    llm = model.llm if model.engine is not None else None
    checkpoint = None if llm is None else llm.checkpoint
    family = "" if llm is None else _family(llm)
    execution = None if llm is None else llm.info.execution
    return {
        "parent_model": parent or "",
        "format": "" if checkpoint is None else checkpoint.kind,
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if checkpoint is None else _rounded(num_parameters(checkpoint.config)),
        "quantization_level": "" if execution is None else execution.dtype,
    }


def _family(llm: LLM) -> str:
    return llm.dialect.name if llm.checkpoint is None else llm.checkpoint.model_type


def _rounded(count: int) -> str:
    """A number of parameters as Ollama shows it."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _model_info(llm: LLM, name: str) -> dict[str, Any]:
    family = _family(llm)
    shown = {"general.architecture": family, "general.basename": name}
    facts: dict[str, Any] = {
        f"{family}.context_length": llm.info.max_model_len,
        f"{family}.vocab_size": llm.info.vocab_size,
    }
    if llm.checkpoint is not None:
        config = llm.checkpoint.config
        facts |= {
            "general.parameter_count": num_parameters(config),
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.num_hidden_layers,
        }
    return {**shown, **facts}


def _capabilities(llm: LLM) -> list[str]:
    able = {
        "completion": True,
        "tools": "tools" in llm.processor.chat_template.source,
        "vision": sees(llm),
        "thinking": llm.dialect.thinks,
        "embedding": Capability.EMBEDDINGS in llm.info.capabilities,
    }
    return [name for name, has in able.items() if has]


def _parameters(llm: LLM) -> list[str]:
    """The model's own options, as lines of a Modelfile."""
    defaults = llm.default_sampling_params()
    values = {
        "temperature": defaults.temperature,
        "top_k": max(defaults.top_k, 0),
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
        "num_ctx": llm.info.max_model_len,
    }
    return [f"{name} {value}" for name, value in values.items()]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
