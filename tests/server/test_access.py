"""Who may ask a server: host names, origins, API keys, where it listens; and what its log says of requests."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import refused
from starlette.routing import Route

from glm4.errors import InvalidRequestError
from live import LiveServer, config, serve
from scripted_llm import scripted_llm

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
KEYS = ("first-secret-key", "second-secret-key")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serve(config("tiny"), scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nx")) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nx")
    with serve(config("tiny", api_keys=KEYS), llm) as running:
        yield running


# Hosts and origins


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1", 200), ("127.0.0.9:1", 200), ("[::1]:8000", 200),
        ("app.localhost", 200), ("LOCALHOST", 200), ("evil.example", 421), ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421), ("10.0.0.1", 421), ("evil.example:127.0.0.1", 421), ("[::2]", 421),
        ("localhost@evil.example", 421), ("evil.example#localhost", 421), ("0.0.0.0", 421),
    ],
)  # fmt: skip
def test_a_rebound_host_name_is_refused(client: httpx.Client, host: str, status: int) -> None:
    response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    if status != 200:
        assert refused(response, status)["code"] == "bad_host"


def test_hosts_that_were_allowed(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\nx")
    with serve(config(allowed_hosts=("my.example",)), llm) as live, live.client() as client:
        for host, status in (("my.example", 200), ("MY.example:80", 200), ("your.example", 421)):
            assert client.get("/health", headers={"host": host}).status_code == status


def test_browsers_of_other_origins_get_no_permission(client: httpx.Client) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:8000"):
        response = client.get("/v1/models", headers={"origin": origin})
        assert not [name for name in response.headers if name.startswith("access-control")]
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        asked = client.options(CHAT, headers=preflight)
        assert not [name for name in asked.headers if name.startswith("access-control")]


def test_origins_that_were_allowed(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\nx")
    options: dict[str, Any] = {"allowed_origins": ("https://app.example",), "api_keys": ("a-secret-key",)}
    with serve(config(**options), llm) as live, live.client() as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = client.options(CHAT, headers={"origin": "https://app.example", **asked})
        assert preflight.status_code == 200  # browsers send no key with it
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
        for method in ("PATCH", "PUT"):
            asks = {"origin": "https://app.example", "access-control-request-method": method}
            allowed = client.options(CHAT, headers=asks).headers["access-control-allow-methods"]
            assert allowed == f"GET, POST, {method}, DELETE, OPTIONS"
        denied = client.post(CHAT, json=HELLO, headers={"origin": "https://app.example"})
        assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (401, "https://app.example")
        assert denied.headers["vary"] == "Origin"
        other = client.options(CHAT, headers={"origin": "https://app.example.evil", **asked})
        assert "access-control-allow-origin" not in other.headers


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        *({"authorization": f"Bearer {key}"} for key in KEYS),
        *({"x-api-key": key} for key in KEYS),
        {"authorization": f"bearer  {KEYS[0]}"},
        {"authorization": "Basic dTpw", "x-api-key": KEYS[1]},
        {"authorization": "Bearer wrong-key", "x-api-key": KEYS[1]},
    ],
)
def test_any_key_opens(locked: LiveServer, headers: dict[str, str]) -> None:
    with locked.client(headers=headers) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post(CHAT, json=HELLO).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": KEYS[0]},
        {"authorization": f"Basic {KEYS[0]}"},
        {"authorization": f"Bearer {KEYS[0]}x"},
        {"authorization": f"Bearer {KEYS[0][:-1]}"},
        {"authorization": f"Bearer {KEYS[0]} {KEYS[1]}"},
        {"authorization": f"Bearer {KEYS[0].upper()}"},
        {"authorization": "Bearer ключ".encode()},
        {"x-api-key": ""},
        {"x-api-key": f"Bearer {KEYS[0]}"},
        {"x-api-key": ",".join(KEYS)},
        {"api-key": KEYS[0]},
        {"cookie": f"x-api-key={KEYS[0]}"},
    ],
)
def test_nothing_else_opens(locked: LiveServer, headers: dict[str, Any]) -> None:
    with locked.client(headers=headers) as client:
        for path in (CHAT, "/v1/completions", "/v1/models", "/metrics", "/nothing", "/docs/x"):
            response = client.post(path, json=HELLO)
            assert refused(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            assert not [key for key in KEYS if key in response.text]


def test_a_key_in_the_address_opens_nothing(locked: LiveServer) -> None:
    with locked.client() as client:
        assert client.get(f"/v1/models?api_key={KEYS[0]}").status_code == 401


def test_anthropics_api_refuses_in_its_own_shape(locked: LiveServer) -> None:
    with locked.client() as client:
        response = client.post("/v1/messages", json={})
        assert response.status_code == 401
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == "authentication_error"


def test_some_paths_need_no_key(locked: LiveServer) -> None:
    with locked.client() as client:
        routes = [route for route in locked.app.routes if isinstance(route, Route)]
        paths = {route.path for route in routes if "GET" in (route.methods or ())}
        open_paths = {path for path in paths if client.get(path).status_code in (200, 307)}
        assert all(client.get(path).status_code == 401 for path in paths - open_paths)
    assert open_paths == {
        *("/", "/health", "/v1/health", "/ready", "/version", "/openapi.json"),
        *("/docs", "/docs/docs.js", "/docs/docs.css"),
    }


def test_every_key_is_compared_in_full(locked: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a refusal takes must not tell how close a guess was: each key is compared, by `compare_digest`."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def recording(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    with locked.client() as client:
        for offered in (KEYS[0], KEYS[1], KEYS[0][:-1] + "X", "x"):
            compared.clear()
            client.get("/v1/models", headers={"x-api-key": offered})
            assert compared == [(key.encode(), offered.encode()) for key in KEYS]


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_it_does_not_listen_elsewhere_without_a_key(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="API key"):
        config(host=host)
    assert config(host=host, api_keys=KEYS).host == host
    assert config(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_it_needs_none(host: str) -> None:
    assert config(host=host).is_loopback


def test_a_short_key_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="8 characters"):
        config(api_keys=("secret",))


# The log


def test_prompts_are_logged_when_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: "\nfine")
    with caplog.at_level(logging.INFO), serve(config(log_prompts=True), llm) as running, running.client() as client:
        client.post("/v1/completions", json={"prompt": "line one\nline two"})
    (record,) = [record for record in caplog.records if "line one" in record.getMessage()]
    assert record.getMessage() == r"prompt for tiny: '[gMASK]<sop>line one\nline two'"


def test_the_log_has_no_word_of_prompts_and_keys(locked: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    word = "xyzzy-plugh"
    good = {"x-api-key": KEYS[0], "x-request-id": "mine-1"}
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": word}]},
        {"messages": [{"role": "user", "content": word}], "stream": True},
        {"messages": [{"role": word}]},
        {"messages": [], word: word},
        {"model": word, "messages": [{"role": "user", "content": word}]},
    ]
    with caplog.at_level(logging.DEBUG), locked.client() as client:
        for body in bodies:
            client.post(f"{CHAT}?q={word}", json=body, headers=good)
        client.post(CHAT, content=f'{{"{word}'.encode(), headers={**good, "content-type": "application/json"})
        client.post("/v1/completions", json={"prompt": word}, headers={"x-api-key": word})
        client.get("/v1/models/a%0Ab\u2028", headers=good)
    ours = [record for record in caplog.records if record.name.startswith(("glm4", "uvicorn", "asyncio"))]
    lines = [logging.Formatter().format(record) for record in ours]
    assert lines
    assert not [line for line in lines if word in line or KEYS[0] in line]
    access = [record for record in ours if record.name == "glm4.access"]
    assert len(access) == len(bodies) + 3
    assert access[0].getMessage().startswith(f"POST {CHAT} 200 ")
    assert {record.__dict__["request_id"] for record in access[:5]} == {"mine-1"}
    assert all(len(record.getMessage().splitlines()) == 1 for record in access)


def test_request_ids_are_returned(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "abc.D_1-2"}).headers["x-request-id"] == "abc.D_1-2"
    made = [client.get("/health").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert json.dumps(made).isascii()
