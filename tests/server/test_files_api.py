"""/v1/files through OpenAI's client: round trips, owners, deletion, paging, limits, and forms that are made to harm."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from files_server import KEYS, check, client_of, files_server
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from glm4.agent.sessions import SessionStore
from glm4.api.files.multipart import MAX_FIELD_NBYTES, MAX_PARTS, FormFile, boundary_of, parse_form
from glm4.errors import InvalidRequestError
from glm4.server.agent.state import AgentState
from glm4.server.state import find_state
from live import LiveServer


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with files_server(tmp_path_factory.mktemp("files"), keys=KEYS, max_upload_bytes=1 << 20) as running:
        yield running


@pytest.fixture
def openai(live: LiveServer) -> OpenAI:
    return client_of(live, KEYS[0])


def test_a_file_comes_back_as_it_was_sent(live: LiveServer, openai: OpenAI) -> None:
    data = bytes(range(256)) * 40 + b"\r\n--boundary\r\n\r\n--\r\n"
    made = openai.files.create(file=('a "report"\\ 年.bin', data), purpose="user_data")
    assert made.id.startswith("file-")
    assert (made.bytes, made.purpose, made.status, made.object) == (len(data), "user_data", "processed", "file")
    assert made.filename == " 年.bin".strip() or made.filename.endswith("年.bin")
    assert abs(made.created_at - time.time()) < 600
    assert openai.files.retrieve(made.id) == made
    answer = openai.files.content(made.id)
    assert answer.content == data
    assert answer.response.headers["content-type"] == "application/octet-stream"
    assert answer.response.headers["content-disposition"].startswith("attachment")
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        check("File", http.get(f"/v1/files/{made.id}").json())
        check("FileList", http.get("/v1/files").json())
        check("DeletedObject", http.delete(f"/v1/files/{made.id}").json())
    with pytest.raises(NotFoundError) as raised:
        openai.files.content(made.id)
    assert raised.value.body == {
        "message": f"No such File object: {made.id}", "type": "not_found_error", "param": "file_id",
        "code": "not_found",
    }  # fmt: skip


def test_files_are_listed_in_pages(live: LiveServer) -> None:
    openai = client_of(live, KEYS[1])
    made = [openai.files.create(file=(f"{n}.txt", b"%d" % n), purpose="assistants").id for n in range(5)]
    other = openai.files.create(file=("p.png", b"x"), purpose="vision").id
    assert [one.id for one in openai.files.list(limit=2, order="asc")] == [*made, other]
    assert [one.id for one in openai.files.list(limit=4)] == [other, *made[::-1]]
    assert [one.id for one in openai.files.list(purpose="vision")] == [other]
    page = openai.files.list(limit=2, after=made[1], order="asc")
    assert ([one.id for one in page.data], page.has_more) == (made[2:4], True)
    for wrong in ({"limit": 0}, {"limit": 20_000}, {"order": "up"}, {"after": "file-none"}):
        with pytest.raises(BadRequestError):
            openai.files.list(**wrong)
    for name in (*made, other):
        assert openai.files.delete(name).deleted
    assert not openai.files.list().data


def test_a_file_belongs_to_its_key(live: LiveServer, openai: OpenAI) -> None:
    stranger = client_of(live, KEYS[1])
    made = openai.files.create(file=("mine.txt", b"mine"), purpose="assistants")
    for ask in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(NotFoundError):
            ask(made.id)
    assert made.id not in {one.id for one in stranger.files.list()}
    with pytest.raises(NotFoundError):
        stranger.vector_stores.create(file_ids=[made.id])
    assert openai.files.content(made.id).content == b"mine"
    with live.client() as http:
        assert http.get("/v1/files").status_code == 401


def test_content_goes_with_the_last_file_that_has_it(live: LiveServer, openai: OpenAI) -> None:
    files = find_state(live.app, AgentState).files
    first = openai.files.create(file=("a.txt", b"the same"), purpose="assistants")
    second = client_of(live, KEYS[1]).files.create(file=("b.txt", b"the same"), purpose="assistants")
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        answer = http.post("/v1/agent/files?name=c.txt", content=b"other")
        assert answer.status_code == 200, answer.text
        digest = hashlib.sha256(b"other").hexdigest()
    third = openai.files.create(file=("d.txt", b"other"), purpose="assistants")
    same = hashlib.sha256(b"the same").hexdigest()
    openai.files.delete(first.id)
    assert files.read(same) == b"the same"
    client_of(live, KEYS[1]).files.delete(second.id)
    with pytest.raises(InvalidRequestError):
        files.read(same)
    openai.files.delete(third.id)
    assert files.read(digest) == b"other"  # the assistant's


def test_files_survive_a_restart_and_an_older_database_is_upgraded(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "saved" / "conversations.sqlite")
    kept = store.create(title="from before").id
    for table in ("vector_store_files", "vector_stores", "uploads", "prompts"):
        store.database.run(f"DROP TABLE {table}")
    store.database.run("PRAGMA user_version = 1")
    store.close()
    with files_server(tmp_path, sessions=tmp_path / "saved") as live:
        made = client_of(live).files.create(file=("a.txt", b"stays"), purpose="assistants")
    with files_server(tmp_path, sessions=tmp_path / "saved") as live, live.client() as http:
        assert client_of(live).files.content(made.id).content == b"stays"
        assert http.get(f"/v1/agent/conversations/{kept}").json()["conversation"]["title"] == "from before"


def test_what_is_not_done_is_refused(openai: OpenAI) -> None:
    for wrong, param in (
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "assistants", "expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after"),
    ):
        with pytest.raises(BadRequestError) as raised:
            openai.files.create(file=("a.txt", b"a"), **wrong)
        assert str(raised.value.param).startswith(param)
    with pytest.raises(BadRequestError, match="empty"):
        openai.files.create(file=("a.txt", b""), purpose="assistants")


def test_a_file_has_a_largest_size(live: LiveServer, openai: OpenAI) -> None:
    openai.files.delete(openai.files.create(file=("a", b"a" * (1 << 20)), purpose="assistants").id)
    with pytest.raises(BadRequestError, match="1,048,577 bytes"):
        openai.files.create(file=("a", b"a" * ((1 << 20) + 1)), purpose="assistants")
    with pytest.raises(APIStatusError) as raised:
        openai.files.create(file=("a", b"a" * (2 << 20)), purpose="assistants")
    assert raised.value.status_code == 413
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        assert http.get("/health").status_code == 200


# Forms


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B" + end


def part(name: str, data: bytes = b"x", *, file: str | None = None, more: str = "") -> bytes:
    filename = "" if file is None else f'; filename="{file}"'
    return f'Content-Disposition: form-data; name="{name}"{filename}\r\n{more}\r\n'.encode() + data


GOOD = form(part("purpose", b"assistants"), part("file", b"data", file="a.txt"))
HOSTILE = {
    "empty": b"",
    "no boundary in it": b"data",
    "text before": b"hello\r\n" + GOOD,
    "cut off": GOOD[:-8],
    "cut off in the headers": GOOD[:30],
    "headers without end": b"--B\r\n" + b"A: b\r\n" * 100_000,
    "long header": form(part("file", file="a" * 9000)),
    "no headers": form(b"\r\ndata"),
    "no name": form(b"Content-Disposition: form-data\r\n\r\nx"),
    "empty name": form(part("")),
    "two dispositions": form(b'Content-Disposition: form-data; name="a"\r\n' + part("b")),
    "two names": form(b'Content-Disposition: form-data; name="a"; name="b"\r\n\r\nx'),
    "not a form": form(b'Content-Disposition: attachment; name="a"\r\n\r\nx'),
    "nested": form(part("file", b"--C\r\n", file="a", more="Content-Type: multipart/mixed; boundary=C\r\n")),
    "encoded": form(part("file", b"YQ==", file="a", more="Content-Transfer-Encoding: base64\r\n")),
    "duplicates": form(part("purpose"), part("purpose")),
    "too many": form(*(part(f"f{n}") for n in range(MAX_PARTS + 1))),
    "long text": form(part("purpose", b"x" * (MAX_FIELD_NBYTES + 1))),
    "not UTF-8": form(part("purpose", b"\xff\xfe")),
    "name not UTF-8": form(b'Content-Disposition: form-data; name="\xff"\r\n\r\nx'),
    "other charset": form(b"Content-Disposition: form-data; name=file; filename*=latin1''a\r\n\r\nx"),
    "boundary goes on": form(part("file", file="a"), end=b"more"),
    "epilogue": GOOD + b"more",
    "folded": form(b'Content-Disposition: form-data;\r\n name="a"\r\n\r\nx'),
    "open quote": form(b'Content-Disposition: form-data; name="a\r\n\r\nx'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_form(HOSTILE[name], b"B")


def test_a_form_is_read() -> None:
    assert parse_form(GOOD, b"B") == {"purpose": "assistants", "file": FormFile("a.txt", b"data")}
    extended = b"Content-Disposition: form-data; name=file; filename=x; filename*=UTF-8''%e5%b9%b4.txt\r\n\r\n"
    names = {
        extended: "年.txt",
        b'Content-Disposition: form-data; name="file"; filename="a%22b\\\\c\\"d%41.txt"\r\n\r\n': 'a"b\\c"d%41.txt',
        'content-disposition: form-data; name="file"; filename="C:\\d\\年 x.txt"\r\n\r\n'.encode(): "C:\\d\\年 x.txt",
        b'Content-Disposition: form-data; name="file"; filename=""\r\n\r\n': "",
    }
    for raw, name in names.items():
        assert parse_form(form(raw), b"B") == {"file": FormFile(name, b"")}


@pytest.mark.parametrize(
    "kind",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=B",
     'multipart/form-data; boundary="a b"', f"multipart/form-data; boundary={'b' * 71}",
     "multipart/form-data; boundary=a; boundary=b", "multipart/form-data; boundary=é"],
)  # fmt: skip
def test_a_form_needs_a_boundary(live: LiveServer, kind: str) -> None:
    with pytest.raises(InvalidRequestError):
        boundary_of(kind)
    if kind.isascii():
        headers = {"content-type": kind, "x-api-key": KEYS[0]}
        with live.client(headers=headers) as http:
            answer = http.post("/v1/files", content=GOOD)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@given(st.dictionaries(st.text("ab_[]", min_size=1, max_size=8), st.binary(max_size=300), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_httpx_and_the_parser_agree(files: dict[str, bytes]) -> None:
    request = httpx.Request("POST", "http://a", files={name: (name + ".x", data) for name, data in files.items()})
    read = parse_form(request.read(), boundary_of(request.headers["content-type"]))
    assert read == {name: FormFile(name + ".x", data) for name, data in files.items()}


@given(
    st.lists(st.sampled_from([b"--B", b"\r\n", b"--", b"Content-Disposition: form-data; ", b'name="a"', b";", b"\0"]))
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    with suppress(InvalidRequestError):
        parse_form(b"--B\r\n" + b"".join(pieces), b"B")


def test_hostile_requests_leave_nothing_behind(live: LiveServer) -> None:
    openai = client_of(live, KEYS[0])
    before = len(openai.files.list().data)
    headers = {"content-type": "multipart/form-data; boundary=B", "x-api-key": KEYS[0]}
    with live.client(headers=headers) as http:
        for body in HOSTILE.values():
            assert http.post("/v1/files", content=body).status_code == 400
        for body in (form(part("file", file="a")), form(part("purpose", b"assistants")), form(
            part("purpose", b"assistants"), part("file", b"a field")
        ), form(part("purpose", b"assistants"), part("file", file="a"), part("other"))):  # fmt: skip
            answer = http.post("/v1/files", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
        # A web page sends a form to this machine without asking; it has no key, so it could where none is needed.
        assert http.post("/v1/files", content=GOOD, headers={"origin": "http://evil.example"}).status_code == 200
    assert len(openai.files.list().data) == before + 1


def test_a_page_cannot_send_forms_to_a_server_without_keys(tmp_path: Path) -> None:
    headers = {"content-type": "multipart/form-data; boundary=B", "origin": "http://evil.example"}
    with files_server(tmp_path) as live, live.client(headers=headers) as http:
        assert http.post("/v1/files", content=GOOD).status_code == 415
        assert not http.get("/v1/files").json()["data"]


def test_a_wrong_content_length_is_no_file(live: LiveServer) -> None:
    def send(length: int, *, ends: bool = True) -> bytes:
        with socket.create_connection(live.address, 60) as connection:
            head = (
                f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEYS[0]}\r\nContent-Length: {length}\r\n"
                "Content-Type: multipart/form-data; boundary=B\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + GOOD)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096)

    names = {one.id for one in client_of(live, KEYS[0]).files.list()}
    assert b" 400 " in send(len(GOOD) - 10, ends=False).split(b"\r\n")[0]
    assert b" 200 " not in send(len(GOOD) + 10).split(b"\r\n")[0]
    assert b" 413 " in send(1 << 40, ends=False).split(b"\r\n")[0]
    assert {one.id for one in client_of(live, KEYS[0]).files.list()} == names
