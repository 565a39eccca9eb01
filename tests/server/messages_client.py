"""What tests of /v1/messages share: the official client, and a check of every event against its types."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
from anthropic.types import RawMessageStreamEvent, ToolParam
from pydantic import BaseModel, TypeAdapter

from live import LiveServer

TOOL: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def client_of(server: LiveServer, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, **{"api_key": "some-key", "max_retries": 0, **options})


def ask(key: str, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 100, "messages": [{"role": "user", "content": f"#{key}"}], **fields}


def only_known(model: BaseModel) -> None:
    """Refuse members the official types do not have (they allow any)."""
    assert not model.model_extra, model
    for value in vars(model).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                only_known(one)


def check(kind: Any, body: object) -> Any:
    """A body, checked against the official type."""
    checked = kind.model_validate(body, strict=True)
    only_known(checked)
    return checked


def check_error(body: Any) -> None:
    """Anthropic's error body."""
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert all(isinstance(one, str) and one for one in body["error"].values())


def check_stream(text: str, kind: Any = RawMessageStreamEvent) -> list[Any]:
    """The events of a stream, each checked against the official type. Pings have none."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = (line.partition(": ")[2] for line in block.split("\n"))
        value = json.loads(data)
        assert value["type"] == name
        if name != "ping":
            found.append(TypeAdapter(kind).validate_python(value))
            only_known(found[-1])
    return found


def events_of(response: httpx.Response, kind: Any = RawMessageStreamEvent) -> list[Any]:
    """The events of a streamed response."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return check_stream(response.text, kind)


def streamed(server: LiveServer, body: dict[str, Any], kind: Any = RawMessageStreamEvent) -> list[Any]:
    with server.client() as http:
        response = http.post("/v1/messages", json=body | {"stream": True})
        assert response.status_code == 200, response.text
        return events_of(response, kind)
