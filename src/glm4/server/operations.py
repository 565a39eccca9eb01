"""`Operation`: one method of one path of the API, served and described in /openapi.json."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from glm4.api.fields import Field

TEXT = "text/plain"

# Possible errors, in addition to 401 (keys), 421 (Host) and 500, which any operation may return.
READING = (400, 404, 408, 413, 415, 503)
GENERATING = (*READING, 429, 504)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        method: lower case, as OpenAPI has it.
        path: with parameters as `{name}`, or `{name:path}` where slashes belong to it.
        endpoint: answers a request.
        tag: the group it is listed under.
        summary, summary_zh: one line each, in English and Chinese.
        answer: component with the schema of its 200 answer, or TEXT.
        body: the table its request body is parsed with; None if it takes no body.
        required: fields a body must have.
        example: a body that works.
        media: what the body is sent as.
        events: component of its events when it streams.
        errors: statuses of errors in the API's format.
        also: other statuses → component, where the body is not an error.
        parameters: name → description; in the path if it is part of it, otherwise in the query.
    """

    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    tag: str
    summary: str
    summary_zh: str
    answer: str
    body: Mapping[str, Field] | None = None
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None
    events: str | None = None
    errors: tuple[int, ...] = ()
    also: Mapping[int, str] | None = None
    parameters: Mapping[str, str] | None = None
    error_schema: str = "Error"
    media: str = "application/json"

    @property
    def shown_path(self) -> str:
        """The path in OpenAPI's notation."""
        return self.path.replace(":path}", "}")

    def route(self) -> Route:
        """The route that serves it."""
        return Route(self.path, self.endpoint, methods=[self.method.upper()])
