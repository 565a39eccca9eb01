"""GET /openapi.json: an OpenAPI 3.1 document built from the tables that requests are routed and parsed with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4 import __version__
from glm4.api.fields import body_schema
from glm4.api.schemas import Schema, closed, ref
from glm4.server.operations import TEXT, Operation
from glm4.server.state import find_state

_ERRORS: Mapping[int, str] = {
    400: "a field is unknown, unsupported or has an impossible value, or the body is not JSON; param names the field",
    401: "no valid API key",
    404: "there is no such model or path",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not sent as application/json, or as what else the operation takes",
    421: "the Host header names another machine",
    429: "too many requests are waiting; Retry-After says when to try again",
    500: "a fault of the server",
    503: "the model is still loading or has failed, or no slot became free in time",
    504: "the answer took longer than the server allows",
}
_WAIT = {
    "Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "description": "seconds"},
}
_REQUEST_ID = {
    "x-request-id": {"schema": {"type": "string"}, "description": "the client's own, if it sent one; also in the log"},
}


@dataclass(frozen=True)
class OpenAPI:
    """The document of a server."""

    document: dict[str, Any]


async def openapi_json(request: Request) -> Response:
    """The document of this server."""
    return JSONResponse(find_state(request.app, OpenAPI).document)


OPENAPI_JSON = Operation(
    "get", "/openapi.json", openapi_json, "Server", "This document", "本文档", "OpenAPI"
)  # fmt: skip


def document(
    operations: Sequence[Operation], schemas: Mapping[str, Schema], public: Collection[str] | None
) -> dict[str, Any]:
    """An OpenAPI 3.1 document.

    Args:
        schemas: the components the operations name.
        public: paths that are open without an API key; None if no path needs one.
    """
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        locked = public is not None and operation.path not in public
        paths.setdefault(operation.shown_path, {})[operation.method] = _operation(operation, locked)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "glm4",
            "version": __version__,
            "summary": "OpenAI's API, with vLLM's names for extensions, for models of the GLM-4 family",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": dict(schemas),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(operation: Operation, locked: bool) -> dict[str, Any]:
    return {
        "operationId": _identifier(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "x-summary-zh": operation.summary_zh,
        "security": [{"bearer": []}, {"key": []}] if locked else [],
        "responses": _responses(operation, locked),
        **_parameters(operation),
        **_body(operation),
    }


def _identifier(operation: Operation) -> str:
    words = operation.shown_path.replace("{", "").replace("}", "").replace(".", "_").strip("/").split("/")
    return "_".join([operation.method, *words])


def _parameters(operation: Operation) -> dict[str, Any]:
    if not operation.parameters:
        return {}
    rows = []
    for name, description in operation.parameters.items():
        place = "path" if f"{{{name}}}" in operation.shown_path else "query"
        schema = {"type": "string", "minLength": 1}
        rows.append(
            {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}
        )
    return {"parameters": rows}


def _body(operation: Operation) -> dict[str, Any]:
    if operation.body is None:
        return {}
    content = {"schema": body_schema(operation.body, operation.required), "example": operation.example}
    return {"requestBody": {"required": True, "content": {operation.media: content}}}


def _responses(operation: Operation, locked: bool) -> dict[str, Any]:
    responses = {"200": _answer(operation)}
    for status, name in (operation.also or {}).items():
        responses[str(status)] = _json(name, "not now", _WAIT)
    errors = {*operation.errors, 421, 500, *((401,) if locked else ())}
    for status in sorted(errors):
        headers = _WAIT if status in (429, 503) else {}
        responses[str(status)] = _json(operation.error_schema, _ERRORS[status], headers)
    return responses


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer == TEXT:
        answer: dict[str, Any] = {"content": {TEXT: {"schema": {"type": "string"}}}}
    else:
        answer = {"content": {"application/json": {"schema": ref(operation.answer)}}}
    if operation.events is not None:
        answer["content"]["text/event-stream"] = {"schema": _event(operation.events, operation.error_schema)}
    return {"description": "the answer", "headers": _REQUEST_ID, **answer}


def _event(name: str, error: str) -> dict[str, Any]:
    """A server-sent event, as its parsed fields. OpenAPI 3.1 cannot express a stream of them (3.2 has itemSchema)."""
    chunk = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [ref(name), ref(error)]},
    }
    data = {
        "description": "JSON: a part of the answer, or an error that ends the stream; [DONE] comes last",
        "anyOf": [{"const": "[DONE]"}, chunk],
    }
    return closed({"data": data, "event": {"type": "string"}}, "event")


def _json(name: str, description: str, headers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {**_REQUEST_ID, **headers},
        "content": {"application/json": {"schema": ref(name)}},
    }
