"""Further apps beside the API: mounted by somebody else's code, over real HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from glm4.api.fields import STRING, Field, read_fields, text
from glm4.server.app import create_app
from glm4.server.app_parts import App
from glm4.server.errors import ApiError
from glm4.server.operations import READING, Operation
from glm4.server.pages import Page
from glm4.server.state import ServerState, find_state, server_state
from live import LiveServer, config, serve
from scripted_llm import scripted_llm

KEY = "a-secret-key"
FIELDS = {"text": Field(STRING, text)}


@dataclass
class Notes:
    """What the app keeps."""

    lines: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)


async def add_note(request: Request) -> Response:
    given = read_fields(await server_state(request).read(request), FIELDS)
    notes = find_state(request.app, Notes)
    notes.lines.append(given["text"])
    return JSONResponse({"count": len(notes.lines)})


async def fault(request: Request) -> Response:
    raise RuntimeError("/a/path of this machine")


async def refuse(request: Request) -> Response:
    raise ApiError(409, "there is such a note", "text", "taken")


async def start(app: Starlette) -> None:
    models = find_state(app, ServerState).models  # what was started before is there
    find_state(app, Notes).happened.append(f"start with {models.models[0].name}")


async def stop(app: Starlette) -> None:
    find_state(app, Notes).happened.append("stop")


def notes_app(folder: Path) -> App:
    page = folder / "notes.html"
    page.write_text("<!doctype html><title>Notes</title>", encoding="utf-8")
    return App(
        "notes",
        operations=[
            Operation(
                *("post", "/notes", add_note, "Notes", "Keep a note", "保存笔记", "NoteCount"),
                body=FIELDS,
                required=("text",),
                example={"text": "milk"},
                errors=READING,
            )
        ],
        routes=[Route("/notes/fault", fault), Route("/notes/refuse", refuse), Route("/notes/health", refuse)],
        pages=[Page("/notes/page", page, "text/html")],
        public=frozenset({"/notes/health"}),
        schemas={"NoteCount": {"type": "object", "properties": {"count": {"type": "integer"}}}},
        state=Notes(),
        start=start,
        stop=stop,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    llm = scripted_llm(folder / "model", lambda prompt: "\nhello")
    with serve(config("tiny", api_keys=(KEY,)), llm, apps=[notes_app(folder)]) as running:
        yield running
    assert find_state(running.app, Notes).happened == ["start with tiny", "stop"]


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client(headers={"x-api-key": KEY}) as made:
        yield made


def test_its_route_answers_beside_the_api(client: httpx.Client) -> None:
    assert client.post("/notes", json={"text": "milk"}).json() == {"count": 1}
    assert client.post("/notes", json={"text": "eggs"}).json() == {"count": 2}
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


def test_the_middleware_is_the_servers(server: LiveServer, client: httpx.Client) -> None:
    with server.client() as stranger:
        for path in ("/notes/fault", "/notes/refuse"):
            assert stranger.get(path).json()["error"]["code"] == "invalid_api_key"
        assert stranger.post("/notes", json={"text": "milk"}).status_code == 401
        assert stranger.get("/notes/health").status_code == 409  # reached
        page = stranger.get("/notes/page")
    assert page.text == "<!doctype html><title>Notes</title>"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.post("/notes", json={"text": "x"}, headers={"host": "evil.example"}).status_code == 421
    answer = client.post(
        "/notes", json={"text": "x"}, headers={"x-request-id": "mine", "origin": "http://evil.example"}
    )
    assert answer.headers["x-request-id"] == "mine"
    assert "access-control-allow-origin" not in answer.headers


def test_its_failure_is_a_json_error_and_harms_nothing_else(client: httpx.Client) -> None:
    broken = client.get("/notes/fault")
    assert broken.status_code == 500
    assert broken.json()["error"]["type"] == "api_error"
    assert "path" not in broken.text
    assert client.get("/notes/refuse").json()["error"] == {
        "message": "there is such a note",
        "type": "conflict_error",
        "param": "text",
        "code": "taken",
    }
    unread = client.post("/notes", json={"lines": []})
    assert (unread.status_code, unread.json()["error"]["param"]) == (400, "lines")
    assert client.post("/notes", json={"text": "bread"}).status_code == 200
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_it_is_described_where_it_says_so(client: httpx.Client) -> None:
    told: dict[str, Any] = client.get("/openapi.json").json()
    described = told["paths"]["/notes"]["post"]
    assert described["security"] == [{"bearer": []}, {"key": []}]
    assert "/notes/fault" not in told["paths"]
    assert {"name": "Notes"} in told["tags"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate({"text": "x"}, schema)
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/NoteCount"}
    assert "NoteCount" in told["components"]["schemas"]


def test_apps_start_in_order_and_stop_in_the_opposite_one(folder: Path) -> None:
    happened: list[str] = []

    def app(name: str) -> App:
        def noting(what: str) -> Callable[[Starlette], Any]:
            async def note(app: Starlette) -> None:
                happened.append(f"{what} {name}")

            return note

        return App(name, start=noting("start"), stop=noting("stop"))

    llm = scripted_llm(folder / "ordered", lambda prompt: "\nhello")
    with serve(config("tiny"), llm, apps=[app("a"), app("b")]):
        assert happened == ["start a", "start b"]
    assert happened == ["start a", "start b", "stop b", "stop a"]


@pytest.mark.parametrize("seconds", ["0", "3600"])
def test_a_start_that_fails_ends_the_server_and_says_whose_it_was(seconds: str) -> None:
    """While a model is being loaded, too."""
    program = str(Path(__file__).with_name("failing_start.py"))
    ended = subprocess.run([sys.executable, program, seconds], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "the server cannot start: broken: the notes cannot be opened" in ended.stderr.splitlines()[-1]
    assert "first stopped" in ended.stderr
    assert "broken stopped" not in ended.stderr


@pytest.mark.parametrize(
    ("app", "named"),
    [
        (App("x", routes=[Route("/v1/models", fault)]), "GET /v1/models"),
        (App("x", pages=[Page("/docs", Path("x"), "text/html")]), "GET /docs"),
        (App("x", schemas={"Usage": {}}), "the component Usage"),
        (App("x", state=Notes()), "a state of type test_apps.Notes"),
    ],
)
def test_apps_cannot_hide_each_other(folder: Path, app: App, named: str) -> None:
    with pytest.raises(ValueError, match=f"two apps have {named}$"):
        create_app(config("tiny"), apps=[notes_app(folder), app])
