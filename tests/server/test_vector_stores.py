"""/v1/vector_stores through OpenAI's client, and what file_search and code_interpreter do with such files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files_server import HANDBOOK, KEYS, check, client_of, files_server
from openai import BadRequestError, NotFoundError, OpenAI
from python_conversations import make_bare_home

from glm4.agent.files import StoredFile
from glm4.agent.sessions import SessionStore
from glm4.agent.uploads import Paging, add_upload
from glm4.agent.vector_stores import MAX_FILES, add_member, create_store, members
from glm4.errors import InvalidRequestError
from glm4.sandbox.launch import unavailable
from live import LiveServer

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"documents are read in a sandbox: {unavailable()}")


def answer(prompt: str) -> str:
    if "Employees have thirty" in prompt:
        return "\nThirty days 【7†source】."
    return '\nsearch_files\n{"query": "vacation days"}'


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with files_server(tmp_path_factory.mktemp("stores"), answer, keys=KEYS, tools=("files",)) as running:
        yield running


@pytest.fixture
def openai(live: LiveServer) -> OpenAI:
    return client_of(live, KEYS[0])


@pytest.fixture
def handbook(openai: OpenAI) -> str:
    return openai.files.create(file=("handbook.md", HANDBOOK.encode()), purpose="assistants").id


def test_a_store_is_made_changed_and_deleted(openai: OpenAI, handbook: str) -> None:
    made = openai.vector_stores.create(name="Rules", file_ids=[handbook], metadata={"team": "a"})
    assert (made.status, made.name, made.metadata, made.usage_bytes) == (
        "completed", "Rules", {"team": "a"}, len(HANDBOOK),
    )  # fmt: skip
    assert (made.file_counts.completed, made.file_counts.total) == (1, 1)
    changed = openai.vector_stores.update(made.id, name="All rules", metadata={"team": "b"})
    assert (changed.name, changed.metadata) == ("All rules", {"team": "b"})
    assert openai.vector_stores.retrieve(made.id).name == "All rules"
    assert openai.vector_stores.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        openai.vector_stores.retrieve(made.id)
    assert openai.files.retrieve(handbook).filename == "handbook.md"


def test_answers_are_as_the_document_says(live: LiveServer, openai: OpenAI, handbook: str) -> None:
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        store = check("VectorStore", http.post("/v1/vector_stores", json={"name": "x"}).json())["id"]
        path = f"/v1/vector_stores/{store}"
        check("VectorStoreFile", http.post(f"{path}/files", json={"file_id": handbook}).json())
        batch = check("VectorStoreFileBatch", http.post(f"{path}/file_batches", json={"file_ids": [handbook]}).json())
        for name, place in (
            ("VectorStoreList", "/v1/vector_stores"), ("VectorStore", path), ("VectorStoreFileList", f"{path}/files"),
            ("VectorStoreFile", f"{path}/files/{handbook}"),
            ("VectorStoreFileContent", f"{path}/files/{handbook}/content"),
            ("VectorStoreFileBatch", f"{path}/file_batches/{batch['id']}"),
            ("VectorStoreFileList", f"{path}/file_batches/{batch['id']}/files"),
        ):  # fmt: skip
            check(name, http.get(place).json())
        check("VectorStoreResults", http.post(f"{path}/search", json={"query": "trains"}).json())
        check("DeletedObject", http.delete(f"{path}/files/{handbook}").json())
        check("DeletedObject", http.delete(path).json())


def test_passages_are_found_by_their_words(openai: OpenAI, handbook: str) -> None:
    other = openai.files.create(
        file=("bikes.txt", "Bikes are in the cellar. 自行车在地下室。".encode()), purpose="assistants"
    )
    store = openai.vector_stores.create(file_ids=[handbook, other.id]).id
    openai.vector_stores.files.create(store, file_id=other.id, attributes={"kind": "notes", "year": 2024})
    found = openai.vector_stores.search(store, query="Who books trains?").data
    assert [(one.file_id, one.filename) for one in found] == [(handbook, "handbook.md")]
    assert "travel office" in found[0].content[0].text
    assert 0 < found[0].score < 1
    (bike,) = openai.vector_stores.search(store, query="自行车在哪里").data
    assert (bike.file_id, bike.attributes) == (other.id, {"kind": "notes", "year": 2024})
    assert len(openai.vector_stores.search(store, query=["bikes", "trains", "vacation"]).data) == 3
    assert len(openai.vector_stores.search(store, query=["bikes", "trains"], max_num_results=1).data) == 1
    assert not openai.vector_stores.search(store, query="trains", ranking_options={"score_threshold": 0.999}).data
    assert not openai.vector_stores.search(store, query="nothing like it").data
    openai.files.delete(other.id)
    assert not openai.vector_stores.search(store, query="bikes").data
    empty = openai.vector_stores.create(name="empty").id
    assert not openai.vector_stores.search(empty, query="bikes").data


def test_files_that_cannot_be_read_say_why(openai: OpenAI, handbook: str) -> None:
    broken = openai.files.create(file=("broken.pdf", b"%PDF-1.7 and nothing more"), purpose="assistants").id
    store = openai.vector_stores.create(file_ids=[handbook, broken])
    assert (store.file_counts.completed, store.file_counts.failed) == (1, 1)
    member = openai.vector_stores.files.retrieve(broken, vector_store_id=store.id)
    assert member.status == "failed"
    assert member.last_error is not None
    assert "broken.pdf" in member.last_error.message
    assert [one.id for one in openai.vector_stores.files.list(store.id, filter="failed")] == [broken]
    assert [one.id for one in openai.vector_stores.files.list(store.id, filter="completed")] == [handbook]
    assert not openai.vector_stores.files.list(store.id, filter="in_progress").data
    with pytest.raises(BadRequestError, match=r"broken\.pdf"):
        openai.vector_stores.files.content(broken, vector_store_id=store.id)
    assert openai.vector_stores.search(store.id, query="vacation").data


def test_batches_and_pages(openai: OpenAI) -> None:
    store = openai.vector_stores.create(name="batch").id
    files = [(f"{n}.txt", f"Note {n}".encode()) for n in range(3)]
    batch = openai.vector_stores.file_batches.upload_and_poll(store, files=files)
    assert (batch.status, batch.file_counts.completed) == ("completed", 3)
    ids = [one.id for one in openai.vector_stores.file_batches.list_files(batch.id, vector_store_id=store)]
    one = openai.vector_stores.files.upload_and_poll(vector_store_id=store, file=("last.txt", b"The last"))
    assert one.status == "completed"
    assert [file.id for file in openai.vector_stores.files.list(store, limit=2)] == [one.id, *ids]
    assert [file.id for file in openai.vector_stores.files.list(store, order="asc", before=one.id)] == ids[::-1]
    assert openai.vector_stores.files.delete(one.id, vector_store_id=store).deleted
    with pytest.raises(NotFoundError):
        openai.vector_stores.files.delete(one.id, vector_store_id=store)
    with pytest.raises(NotFoundError):
        openai.vector_stores.file_batches.retrieve("vsfb_none", vector_store_id=store)
    stores = [openai.vector_stores.create(name=f"s{n}").id for n in range(3)]
    assert [found.id for found in openai.vector_stores.list(limit=2)][:3] == stores[::-1]


def test_a_store_belongs_to_its_key(live: LiveServer, openai: OpenAI, handbook: str) -> None:
    store = openai.vector_stores.create(file_ids=[handbook]).id
    stranger = client_of(live, KEYS[1])
    asks: list[Any] = [
        lambda: stranger.vector_stores.retrieve(store),
        lambda: stranger.vector_stores.update(store, name="mine"),
        lambda: stranger.vector_stores.delete(store),
        lambda: stranger.vector_stores.search(store, query="vacation"),
        lambda: stranger.vector_stores.files.list(store),
        lambda: stranger.vector_stores.files.content(handbook, vector_store_id=store),
        lambda: stranger.vector_stores.files.delete(handbook, vector_store_id=store),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError):
            ask()
    own = stranger.vector_stores.create().id
    with pytest.raises(NotFoundError):
        stranger.vector_stores.files.create(own, file_id=handbook)
    for name in (store, handbook):
        with pytest.raises(BadRequestError) as raised:
            ask_files(stranger, name)
        assert raised.value.param == "tools"
    assert store not in {one.id for one in stranger.vector_stores.list()}
    assert openai.vector_stores.retrieve(store).file_counts.total == 1


def test_what_is_not_done_is_refused(openai: OpenAI, handbook: str) -> None:
    create: Any = openai.vector_stores.create
    for wrong in (
        {"expires_after": {"anchor": "last_active_at", "days": 1}},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {str(n): "b" for n in range(17)}},
        {"chunking_strategy": {"type": "other one"}},
        {"file_ids": "file-1"},
        {"name": "n" * 300},
    ):
        with pytest.raises(BadRequestError):
            create(**wrong)
    store = create(file_ids=[handbook], chunking_strategy={
        "type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}
    }).id  # fmt: skip
    search: Any = openai.vector_stores.search
    queries: list[Any] = [
        {"query": ""},
        {"query": "a", "filters": {"type": "eq", "key": "a", "value": "b"}},
        {"query": "a", "max_num_results": 51},
        {"query": "a", "rewrite_query": True},
        {"query": "a", "ranking_options": {"score_threshold": 2}},
        {"query": "a", "ranking_options": {"ranker": "default-2024-11-15"}},
    ]
    for query in queries:
        with pytest.raises(BadRequestError):
            search(store, **query)


def ask_files(openai: OpenAI, *names: str) -> Any:
    return openai.responses.create(
        model="m", input="How many days?", tools=[{"type": "file_search", "vector_store_ids": list(names)}]
    )


def test_file_search_cites_the_file_by_its_id(openai: OpenAI, handbook: str) -> None:
    store = openai.vector_stores.create(file_ids=[handbook]).id
    for names in ((store,), (handbook,), (store, handbook)):
        response = ask_files(openai, *names)
        (call,) = [item for item in response.output if item.type == "file_search_call"]
        assert (call.status, call.queries) == ("completed", ["vacation days"])
        (part,) = response.output[-1].content
        assert response.output_text.startswith("Thirty days")
        (cited,) = part.annotations
        assert (cited.type, cited.file_id, cited.filename) == ("file_citation", handbook, "handbook.md")
    with pytest.raises(BadRequestError):
        ask_files(openai, "vs_none")
    openai.files.delete(handbook)
    assert openai.vector_stores.retrieve(store).file_counts.total == 0


def test_file_search_still_takes_digests(live: LiveServer, openai: OpenAI) -> None:
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        http.post("/v1/agent/files?name=rules.md", content=HANDBOOK.encode())
    digest = hashlib.sha256(HANDBOOK.encode()).hexdigest()
    (cited,) = ask_files(openai, digest).output[-1].content[0].annotations
    assert (cited.file_id, cited.filename) == (digest, "rules.md")


def test_code_reads_files_by_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))  # without packages to plot with

    def code(prompt: str) -> str:
        if "thirty" in prompt:
            return "It says thirty."
        return 'python\nprint(open("/mnt/data/handbook.md").read())'

    with files_server(tmp_path, code, tools=("python",)) as live:
        openai = client_of(live)
        name = openai.files.create(file=("handbook.md", HANDBOOK.encode()), purpose="assistants").id
        container: Any = {"type": "auto", "file_ids": [name]}
        response = openai.responses.create(
            model="m", input="What does it say?", tools=[{"type": "code_interpreter", "container": container}]
        )
    assert response.output_text == "It says thirty."
    assert "thirty vacation days" in json.dumps([item.model_dump() for item in response.output])


def test_a_store_has_a_largest_number_of_files() -> None:
    store = SessionStore(None)
    name = create_store(store, "", {}).id
    ids = [add_upload(store, StoredFile("0" * 64, "a", "text/plain", 1), "assistants").id for _ in range(MAX_FILES + 1)]
    for one in ids[:-1]:
        add_member(store, name, one, {}, "")
    add_member(store, name, ids[0], {"again": True}, "")
    with pytest.raises(InvalidRequestError, match="at most 100"):
        add_member(store, name, ids[-1], {}, "")
    found, more = members(store, name, Paging(MAX_FILES, "asc"))
    assert ([one.upload.id for one in found], more) == ([*ids[1:-1], ids[0]], False)
    store.close()
