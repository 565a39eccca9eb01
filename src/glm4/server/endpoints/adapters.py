"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's names. Off unless `allow_adapter_loading`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from glm4.api.fields import STRING, Field, read_fields, text
from glm4.engine.protocol import AdapterInfo
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.server.errors import ApiError, log
from glm4.server.registry import ModelRegistry, ServedModel
from glm4.server.state import server_state

LOAD_FIELDS: Mapping[str, Field] = {
    "lora_name": Field(STRING, text),
    "lora_path": Field(STRING, text),
    "model": Field({"type": "string", "description": "which of several models it belongs to"}, text),
}
UNLOAD_FIELDS: Mapping[str, Field] = {"lora_name": Field(STRING, text)}


async def load_adapter(request: Request) -> Response:
    """Load an adapter from a folder on the server's machine."""
    state = server_state(request)
    body = await state.read(request)
    given = read_fields(body, LOAD_FIELDS)
    name, path = given.get("lora_name"), given.get("lora_path")
    if not name or not path:
        raise InvalidRequestError("lora_name and lora_path are needed", param="lora_path" if name else "lora_name")
    target = state.target(request, given)
    taken = {one for model in state.models.models for one in (*model.spec.names, *ModelRegistry.adapters(model))}
    if name in taken:
        raise ApiError(400, f"the name {name!r} is taken", "lora_name", "invalid_value")
    try:
        info = await target.engine.load_adapter(name, path)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param="lora_name") from None
    except (Glm4Error, OSError) as error:
        log.warning("adapter %s cannot be loaded: %s", name, error)  # the message has paths on this machine
        raise ApiError(400, "the adapter cannot be loaded; the server's log says why", "lora_path",
                       "invalid_value") from None  # fmt: skip
    return PlainTextResponse(f"Success: {_title(info)} '{name}' added successfully.")


async def unload_adapter(request: Request) -> Response:
    """Unload an adapter; requests that use it finish first."""
    state = server_state(request)
    given = read_fields(await state.read(request), UNLOAD_FIELDS)
    name = given.get("lora_name")
    if not name:
        raise InvalidRequestError("lora_name is needed", param="lora_name")
    model = _owner(state.models, name)
    assert model.engine is not None  # noqa: S101 (`_owner` looks at ready models only)
    title = next((_title(info) for info in model.llm.adapters() if info.name == name), "adapter")
    model.llm.unload_adapter(name)
    return PlainTextResponse(f"Success: {title} '{name}' removed successfully.")


def _title(info: AdapterInfo) -> str:
    return "LoRA adapter" if info.kind == "lora" else "prefix adapter"


def _owner(models: ModelRegistry, name: str) -> ServedModel:
    for model in models.models:
        if model.engine is not None and name in models.adapters(model):
            return model
    raise ApiError(404, f"there is no adapter {name!r}", "lora_name", "adapter_not_found")
