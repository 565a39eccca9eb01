"""Errors as clients see them: OpenAI's shape, Anthropic's under /v1/messages, Ollama's under /api.

Never a stack trace, never a path.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.errors import (
    BusyError,
    Glm4Error,
    InternalError,
    InvalidRequestError,
    ModelClosedError,
    NotFoundError,
    OutOfMemoryError,
    PromptTooLongError,
    RemoteError,
    RemoteUnavailableError,
    StoreError,
    TemplateError,
)

log = logging.getLogger("glm4.server")

current_request: ContextVar[str | None] = ContextVar("current_request", default=None)
"""Id of the request that this task works for."""

ANTHROPIC_PREFIX = "/v1/messages"
OLLAMA_PREFIX = "/api/"
MAX_MESSAGE = 1000
"""Maximum length of an error message, which quotes what it refuses and would otherwise be megabytes long."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(eq=False)
class ApiError(Exception):
    """An error with an HTTP status, ready for the client.

    Attributes:
        param: the field at fault.
        code: OpenAI's short name for the reason.
        headers: such as Retry-After.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def type(self) -> str:
        """The type of error, in words both APIs share."""
        return _TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")

    def openai(self) -> dict[str, Any]:
        """OpenAI's error body."""
        param = None if self.param is None else _shortened(self.param, 200)
        message = _shortened(self.message, MAX_MESSAGE)
        return {"error": {"message": message, "type": self.type, "param": param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """Anthropic's error body."""
        return {"type": "error", "error": {"type": self.type, "message": _shortened(self.message, MAX_MESSAGE)}}

    def ollama(self) -> dict[str, Any]:
        """Ollama's error body."""
        return {"error": _shortened(self.message, MAX_MESSAGE)}


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def busy(message: str, seconds: int = 1, *, status: int = 503, code: str | None = None) -> ApiError:
    """An error that waiting may resolve."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(seconds)})


def as_api_error(error: BaseException) -> ApiError:
    """Any exception as an error for the client. Internal faults are logged and not described."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), error.param, "context_length_exceeded")
    if isinstance(error, NotFoundError):
        return ApiError(404, str(error), error.param, "not_found")
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), error.param, "invalid_value")
    if isinstance(error, TemplateError):
        return ApiError(400, str(error), "messages", "invalid_value")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        log.error("out of memory", exc_info=error)
        return busy("the server is out of memory; try a shorter request", 10)
    if isinstance(error, BusyError):
        return busy(str(error), 5)
    if isinstance(error, StoreError):
        log.error("stored responses: %s", error)
        return ApiError(500, "stored responses cannot be read or written; the server's log says why", "store")
    if isinstance(error, RemoteUnavailableError):
        log.error("request failed: %s", error)
        return busy("the upstream server is not available; try again later", 5)
    if isinstance(error, RemoteError):
        log.error("request failed: %s", error)
        return ApiError(502, "the upstream server has failed; this server's log says why")
    if isinstance(error, ModelClosedError):
        return busy("the server is stopping", 5, code="shutting_down")
    if isinstance(error, Glm4Error) and not isinstance(error, InternalError):
        log.error("request failed: %s", error)
        return ApiError(500, "the model could not answer; the server's log says why")
    request_id = current_request.get()
    log.error("internal error", exc_info=error, extra={"request_id": request_id})
    named = "" if request_id is None else f" (request {request_id})"
    return ApiError(500, f"internal error; the server's log says more{named}")


def error_response(request: Request, error: BaseException) -> Response:
    """The response to a request that failed, in the shape of its API."""
    api_error = as_api_error(error)
    path = request.url.path
    if path.startswith(ANTHROPIC_PREFIX):
        body = api_error.anthropic()
    else:
        body = api_error.ollama() if path.startswith(OLLAMA_PREFIX) else api_error.openai()
    return JSONResponse(body, status_code=api_error.status, headers=dict(api_error.headers))
