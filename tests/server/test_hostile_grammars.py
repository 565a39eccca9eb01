"""Schemas and grammars that would end the server, through every API that takes one: a 400 each, and all go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from hostile_grammars import HOSTILE, chain
from live import LiveServer, config, serve
from scripted_llm import scripted_llm

DEEP = chain("properties", 1200)
BIG = {"type": "object", "properties": {"id": {"type": "integer", "enum": [175928847299117063]}}, "required": ["id"]}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nhello", template=None, max_model_len=1 << 20)
    with serve(config("tiny"), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def tool(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema | {"type": "object"}}}


def bodies(schema: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """A request with this schema for each API, by what takes it."""
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    chat = {"messages": HI, "tools": [tool(schema)], "tool_choice": "required"}
    flat = {"type": "function", "name": "f", "parameters": schema | {"type": "object"}}
    claude = {"max_tokens": 5, "messages": HI}
    named = {"name": "f", "input_schema": schema | {"type": "object"}}
    return {
        "completion": ("/v1/completions", {"prompt": "x", "structured_outputs": {"json": schema}}),
        "chat": (
            "/v1/chat/completions",
            {"messages": HI, "response_format": wrapped},
        ),
        "tools": ("/v1/chat/completions", chat),
        "render": ("/v1/chat/completions/render", chat),
        "response": ("/v1/responses", {"input": "hi", "text": {"format": form}}),
        "response tools": ("/v1/responses", {"input": "hi", "tools": [flat], "tool_choice": "required"}),
        "message": ("/v1/messages", claude | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}),
        "message tools": ("/v1/messages", claude | {"tools": [named], "tool_choice": {"type": "any"}}),
    }


@pytest.mark.parametrize("api", bodies({}))
def test_a_chain_of_references_is_refused_everywhere(client: httpx.Client, api: str) -> None:
    path, body = bodies(DEEP)[api]
    response = client.post(path, json=body)
    if api == "render" and response.status_code == 200:
        return  # a prompt needs no grammar
    assert response.status_code == 400, response.text
    assert "nests too deeply" in response.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("api", [name for name in bodies({}) if name != "render"])
def test_integers_that_would_change_are_refused_everywhere(client: httpx.Client, api: str) -> None:
    path, body = bodies(BIG)[api]
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert "enum has 175928847299117063" in response.json()["error"]["message"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_no_form_ends_the_server(client: httpx.Client, name: str) -> None:
    response = client.post("/v1/completions", json={"prompt": "x", "structured_outputs": HOSTILE[name]})
    assert response.status_code == 400, response.text
    assert "backtrace" not in response.text
    assert client.get("/health").json() == {"status": "ok"}


def test_stops_and_sets_of_ids_are_bounded(client: httpx.Client) -> None:
    for field, value in {
        "stop": ["x" * 5000, "y" * 5000],
        "stop_token_ids": list(range(2000)),
        "logit_bias": {str(i): 1 for i in range(20_000)},
    }.items():
        for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HI})):
            error = client.post(path, json={**body, field: value}).json()["error"]
            assert error["param"] == field
            assert "limit is" in error["message"], error
            assert len(json.dumps(error)) < 500
    claude = {"max_tokens": 5, "messages": HI, "stop_sequences": ["x" * 5000, "y" * 5000]}
    assert "limit is" in client.post("/v1/messages", json=claude).json()["error"]["message"]
