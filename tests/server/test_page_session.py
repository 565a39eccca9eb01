"""The page's session: cookies instead of keys, and what they do not open."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
from page_clients import ANN, BOB, logged_in, page_server
from starlette.datastructures import Headers

from glm4.errors import InvalidRequestError
from glm4.server.config import ModelSpec
from glm4.server.cookies import SECONDS, Cookies
from glm4.server.page.attempts import MOST_OF_ONE
from glm4.server.page.static import FOLDER, PAGE_HEADERS, TRAINING, page_rows
from live import config, serve
from scripted_llm import scripted_llm


def test_every_file_of_the_page_has_a_row() -> None:
    rows = {page.path: page.file for page in page_rows()}
    for start, below, folder in (("/ui", "/ui/", FOLDER), ("/training", "/ui/training/", TRAINING)):
        assert rows[start] == folder / "index.html"
        for file in folder.iterdir():
            assert file.name == "index.html" or rows[below + file.name] == file
    assert len(rows) == len([*FOLDER.iterdir(), *TRAINING.iterdir()])


def test_the_page_is_sent_with_its_policy_and_not_sent_twice(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, live.client() as client:
        start = client.get("/", follow_redirects=False)
        assert (start.status_code, start.headers["location"]) == (307, "ui")
        page = client.get("/ui")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert {name: page.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
        again = client.get("/ui", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == PAGE_HEADERS["Content-Security-Policy"]
        assert client.get("/ui", headers={"If-None-Match": '"another"'}).content == page.content
        assert client.get("/docs").status_code == 200


def test_nothing_is_there_without_the_page(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN, ui=False) as live, live.client() as client:
        assert client.get("/").headers["location"] == "docs"
        client.headers["Authorization"] = f"Bearer {ANN}"
        assert {client.get(path).status_code for path in ("/ui", "/ui/session")} == {404}
        assert client.post("/ui/login", json={"key": ANN}).status_code == 404
        del client.headers["Authorization"]
        _, value = Cookies([ANN]).begin(next(iter(Cookies([ANN])._keys)))
        client.headers["Cookie"] = f"glm4_session_{live.address[1]}={value}"
        assert client.get("/v1/models").status_code == 401


def test_log_in_and_out(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN, BOB) as live, live.client() as client:
        before = client.get("/ui/session").json()
        assert (before["login"], before["user"], before["operator"], before["token"]) == (True, False, False, "")
        assert (before["models"], before["tools"]) == ([], [])
        wrong = client.post("/ui/login", json={"key": "no-such-key"})
        assert wrong.status_code == 401
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        assert not client.cookies
        assert client.post("/ui/login", json={"key": 7}).status_code == 400
        answer = client.post("/ui/login", json={"key": f" {ANN}\n"})
        port = live.address[1]
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"glm4_session_{port}=")
        given = {part.strip().lower() for part in cookie.split(";")[1:]} - {""}
        assert {"httponly", "samesite=strict", "path=/", f"max-age={SECONDS}"} <= given
        assert "secure" not in given
        assert ANN not in cookie
        session = client.get("/ui/session").json()
        assert session == answer.json()
        assert (session["user"], session["operator"]) == (True, True)
        assert session["models"][0]["name"] == "m"
        with logged_in(live, BOB) as bob:
            assert bob.get("/ui/session").json()["operator"] is False
        copied = dict(client.cookies)
        assert client.post("/ui/logout").status_code == 403  # no token
        assert client.get("/v1/models").status_code == 200
        out = client.post("/ui/logout", headers={"X-GLM4-Token": session["token"]})
        assert out.status_code == 200
        assert "max-age=0" in out.headers["set-cookie"].lower()
        assert out.headers["clear-site-data"] == '"cache"'
        assert not client.cookies
        with live.client(cookies=copied) as thief:
            assert thief.get("/v1/models").status_code == 401
            assert thief.get("/ui/session").json()["user"] is False
        assert client.post("/ui/login", json={"key": ANN}).status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_the_cookie_is_for_encrypted_connections_where_there_are_some(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, live.client(headers={"X-Forwarded-Proto": "https"}) as client:
        assert "secure" in client.post("/ui/login", json={"key": ANN}).headers["set-cookie"].lower()


def test_a_cookie_alone_changes_nothing(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, logged_in(live, ANN) as client:
        token = client.headers.pop("X-GLM4-Token")
        body = {"content": "Hi"}

        def asked(*headers: tuple[str, str | bytes]) -> int:
            return client.post(
                "/v1/agent/turns",
                json=body,
                headers=[
                    (name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers
                ],
            ).status_code

        assert asked() == 403
        assert asked(("X-GLM4-Token", "0" * 64)) == 403
        assert asked(("X-GLM4-Token", "é".encode())) == 403
        assert asked(("X-GLM4-Token", token)) == 200
        assert asked(("X-GLM4-Token", token), ("X-GLM4-Token", "0")) == 403
        assert asked(("X-GLM4-Token", "0"), ("X-GLM4-Token", token)) == 403
        ours = ("Sec-Fetch-Site", "same-origin")
        assert asked(("X-GLM4-Token", token), ours) == 200
        for site in ("cross-site", "same-site", "none"):
            assert asked(("X-GLM4-Token", token), ("Sec-Fetch-Site", site)) == 403
            assert asked(("X-GLM4-Token", token), ours, ("Sec-Fetch-Site", site)) == 403
        # Pictures and frames send no token; other sites' do not get them either.
        assert client.get("/v1/models", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
        assert client.get("/v1/models", headers={"Sec-Fetch-Site": "none"}).status_code == 200
        for site in ("cross-site", "same-site"):
            assert client.get("/v1/models", headers={"Sec-Fetch-Site": site}).status_code == 403
        for method in ("DELETE", "PATCH"):
            assert client.request(method, "/v1/agent/conversations/x", json={}).status_code == 403
        # What is open to all stays open.
        assert client.post("/ui/login", json={"key": ANN}).status_code == 200
        assert client.get("/ui", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_another_page_does_not_log_a_browser_in(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, live.client() as client:
        for site in ("cross-site", "same-site"):
            assert client.post("/ui/login", json={"key": ANN}, headers={"Sec-Fetch-Site": site}).status_code == 403
        form = {"Content-Type": "text/plain", "Origin": "https://elsewhere.example"}
        assert client.post("/ui/login", content=f'{{"key": "{ANN}"}}', headers=form).status_code == 415


def test_keys_work_as_before_and_decide_alone(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN, BOB) as live, logged_in(live, ANN) as client:
        del client.headers["X-GLM4-Token"]
        for headers in ({"Authorization": f"Bearer {BOB}"}, {"x-api-key": BOB}):
            assert client.post("/v1/agent/turns", json={"content": "Hi"}, headers=headers).status_code == 200
        # Bob's, in spite of Ann's cookie.
        assert client.get("/v1/agent/conversations").json()["conversations"] == []
        # A wrong key is not made good by a cookie, in either header.
        for headers in ({"Authorization": "Bearer wrong-key"}, {"x-api-key": "wrong-key"}):
            assert client.get("/v1/models", headers=headers).status_code == 401
        both = {"Authorization": "Bearer wrong-key", "x-api-key": BOB}
        assert client.get("/v1/models", headers=both).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Basic eDp5"}).status_code == 200  # a proxy's


def test_a_cookie_ends_with_its_key_and_its_time() -> None:
    now = [1_000_000.0]

    def clock() -> float:
        return now[0]

    both = Cookies([ANN, BOB], clock)
    name = both.known_key(BOB)
    assert name is not None
    begun, value = both.begin(name)

    def sent(cookies: Cookies, value: str, host: str = "127.0.0.1:8000") -> Any:
        return cookies.find(Headers({"host": host, "cookie": f"a=b; glm4_session_8000={value}; glm4_session_=1"}))

    assert sent(both, value) == begun
    assert sent(Cookies([BOB], clock), value) == begun  # after a restart
    assert sent(Cookies([ANN], clock), value) is None
    assert sent(Cookies([ANN, f"{BOB}2"], clock), value) is None
    assert sent(both, value, "127.0.0.1:8001") is None
    for at in range(len(value)):
        changed = value[:at] + ("0" if value[at] != "0" else "1") + value[at + 1 :]
        assert sent(both, changed) is None, at
    assert both.find(Headers({"host": "h:1", "cookie": f"glm4_session_1=x; glm4_session_1={value}"})) == begun
    ann = both.known_key(ANN)
    assert ann is not None
    assert sent(both, value.replace(name, ann)) is None
    now[0] += SECONDS
    assert sent(both, value) is None
    assert both.known_key("\ud800") is None


def test_guessing_is_slow_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, live.client() as client:
        statuses: list[int] = []

        def guess() -> None:
            statuses.append(httpx.post(f"{live.url}/ui/login", json={"key": "a-wrong-key"}, timeout=60).status_code)

        threads = [threading.Thread(target=guess) for _ in range(4 * MOST_OF_ONE)]
        for thread in threads:
            thread.start()
        while threads[0].is_alive():
            assert client.get("/ui/session").status_code == 200
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert set(statuses) == {401, 429}
        assert client.post("/ui/login", json={"key": ANN}).status_code == 200


def test_without_keys_nobody_logs_in(tmp_path: Path) -> None:
    with page_server(tmp_path, agent={"sessions": tmp_path / "saved"}) as live, live.client() as client:
        session = client.get("/ui/session").json()
        assert (session["login"], session["user"], session["operator"], session["token"]) == (False, True, True, "")
        assert session["saved"] is True
        assert session["tools"] == [{"name": str(tmp_path / "tools.py"), "summary": ""}]
        (model,) = session["models"]
        assert {name: model[name] for name in ("name", "state", "error", "context", "sees", "parent")} == {
            "name": "m", "state": "ready", "error": None, "context": 4096, "sees": False, "parent": None,
        }  # fmt: skip
        assert model["sampling"]["temperature"] == live.llm.default_sampling_params().temperature
        assert client.post("/v1/agent/turns", json={"content": "Hi"}).status_code == 200
        login = client.post("/ui/login", json={"key": "anything"})
        assert (login.json(), "set-cookie" in login.headers) == (session, False)


def test_the_page_comes_before_the_model(tmp_path: Path) -> None:
    going_on = threading.Event()
    made = scripted_llm(tmp_path / "model", lambda prompt: "\nHello.", template=None)

    def load(spec: ModelSpec, progress: Any) -> Any:
        progress("reading weights", 1.0, 4.0)
        going_on.wait(120)
        return made

    with serve(config(ui=True), load=load, wait=False) as live, live.client() as client:
        assert client.get("/ui").status_code == 200
        while (model := client.get("/ui/session").json()["models"][0])["progress"] is None:
            time.sleep(0.01)
        assert (model["state"], model["stage"], model["progress"]) == ("loading", "reading weights, 25%", 0.25)
        assert (model["context"], model["sampling"]) == (None, {})
        going_on.set()
        while (model := client.get("/ui/session").json()["models"][0])["state"] == "loading":
            time.sleep(0.01)
        assert (model["state"], model["progress"]) == ("ready", None)


def test_a_model_that_failed_is_told(tmp_path: Path) -> None:
    def load(spec: ModelSpec, progress: Any) -> Any:
        raise RuntimeError("broken")

    with serve(config(ui=True), load=load) as live, live.client() as client:
        (model,) = client.get("/ui/session").json()["models"]
        assert (model["state"], model["error"]) == ("failed", "internal error (RuntimeError)")


def test_why_a_model_failed_is_the_operators_matter(tmp_path: Path) -> None:
    def load(spec: ModelSpec, progress: Any) -> Any:
        raise InvalidRequestError("there is no folder /home/ann/models/m")

    with serve(config(ui=True, api_keys=(ANN, BOB)), load=load) as live:
        for key, told in ((ANN, "there is no folder /home/ann/models/m"), (BOB, "the server's log says why")):
            with logged_in(live, key) as client:
                (model,) = client.get("/ui/session").json()["models"]
                assert (model["state"], model["error"]) == ("failed", told)
