"""Files inside of conversations: OpenAI's `input_file` and `file` parts, Anthropic's documents."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from files_server import HANDBOOK, KEYS, client_of, files_server
from openai import BadRequestError, OpenAI

from glm4.errors import SandboxUnavailableError
from glm4.sandbox.launch import unavailable
from live import LiveServer
from pdf_files import PdfFile, lines
from picture_files import encoded, picture

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"documents are read in a sandbox: {unavailable()}")

SEEN: list[str] = []
TEXT = base64.b64encode(HANDBOOK.encode()).decode()
PDF = base64.b64encode(bytes(PdfFile([lines(["Herons nest in April."])]))).decode()
READ = f"[File Name]\nhandbook.md\n[File Content]\n{HANDBOOK.strip()}\n\n\n1 files uploaded.\nHow many days?"


def answer(prompt: str) -> str:
    SEEN.append(prompt)
    return "\nok"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with files_server(tmp_path_factory.mktemp("input"), answer, keys=KEYS, max_upload_bytes=1 << 20) as running:
        yield running


@pytest.fixture
def openai(live: LiveServer) -> OpenAI:
    return client_of(live, KEYS[0])


def ask(openai: OpenAI, *files: dict[str, Any], **options: Any) -> Any:
    parts = [{"type": "input_text", "text": "How many days?"}, *({"type": "input_file", **file} for file in files)]
    sent: Any = [{"role": "user", "content": parts}]
    return openai.responses.create(model="m", input=sent, **options)


def chat(openai: OpenAI, *files: dict[str, Any]) -> Any:
    parts: Any = [*({"type": "file", "file": file} for file in files), {"type": "text", "text": "How many days?"}]
    return openai.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])


def stored(openai: OpenAI, name: str = "handbook.md", data: bytes = HANDBOOK.encode()) -> str:
    return openai.files.create(file=(name, data), purpose="user_data").id


@pytest.mark.parametrize("form", ["id", "base64", "data URL"])
def test_a_document_stands_in_front_of_the_message(openai: OpenAI, form: str) -> None:
    if form == "id":
        file = {"file_id": stored(openai)}
    else:
        before = "" if form == "base64" else "data:text/markdown;base64,"
        file = {"file_data": before + TEXT, "filename": "handbook.md"}
    assert ask(openai, file).output_text == "ok"
    assert SEEN[-1].endswith(READ)
    assert chat(openai, file).choices[0].message.content == "ok"
    assert SEEN[-1].endswith(READ)


def test_several_documents_of_any_format(openai: OpenAI) -> None:
    ask(openai, {"file_data": PDF, "filename": "birds.pdf"}, {"file_id": stored(openai)})
    first = SEEN[-1].index("[File Name]\nbirds.pdf\n[File Content]\nHerons nest in April.")
    assert first < SEEN[-1].index("[File Name]\nhandbook.md")
    assert SEEN[-1].endswith("\n\n\n2 files uploaded.\nHow many days?")


def test_a_stored_response_keeps_the_file_and_not_its_text(live: LiveServer, openai: OpenAI) -> None:
    name = stored(openai)
    first = ask(openai, {"file_id": name})
    (item,) = openai.responses.input_items.list(first.id).data
    assert [part.type for part in item.content] == ["input_text", "input_file"]  # type: ignore[union-attr]
    again = openai.responses.create(model="m", input="And?", previous_response_id=first.id)
    assert "thirty vacation days" in SEEN[-1]
    counted = openai.responses.input_tokens.count(model="m", input="And?", previous_response_id=first.id)
    assert counted.input_tokens == again.usage.input_tokens  # type: ignore[union-attr]
    openai.files.delete(name)
    with pytest.raises(BadRequestError, match="No such File object") as raised:
        openai.responses.create(model="m", input="And?", previous_response_id=first.id)
    assert raised.value.param == "previous_response_id"


def test_what_a_function_gives_back_may_be_a_file(openai: OpenAI) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = [{"type": "input_file", "file_data": PDF, "filename": "birds.pdf"}]
    given: Any = ["Look!", call, {"type": "function_call_output", "call_id": "c", "output": output}]
    given[0] = {"role": "user", "content": "Look!"}
    openai.responses.create(model="m", input=given)
    assert "Herons nest" in SEEN[-1]


def test_a_file_of_another_key_is_not_there(live: LiveServer, openai: OpenAI) -> None:
    name = stored(openai)
    stranger = client_of(live, KEYS[1])
    for use in (ask, chat):
        with pytest.raises(BadRequestError, match="No such File object"):
            use(stranger, {"file_id": name})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"file_data": TEXT}, ".filename"),
    ({"file_id": "file-none"}, ""),
    ({"file_id": "file-none", "file_data": TEXT, "filename": "a"}, ""),
    ({"file_data": "not base64!", "filename": "a"}, ".file_data"),
    ({"file_data": "data:text/plain,hello", "filename": "a"}, ".file_data"),
    ({"file_data": "data:text/plain;base64,", "filename": "a"}, ".file_data"),
    ({"file_data": 5, "filename": "a"}, ".file_data"),
    ({"file_url": "http://127.0.0.1/a.pdf"}, ".file_url"),
    ({"file_data": TEXT, "filename": "a", "other": "b"}, ".other"),
    ({"file_data": base64.b64encode(b"%PDF-1.7 broken").decode(), "filename": "a.pdf"}, ""),
    ({"file_data": base64.b64encode(b"a" * ((1 << 20) + 1)).decode(), "filename": "a.txt"}, ""),
]


@pytest.mark.parametrize(("file", "place"), WRONG)
def test_wrong_files_are_refused_by_name(openai: OpenAI, file: dict[str, Any], place: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        ask(openai, file)
    assert raised.value.param == f"input[0].content[1]{place}"
    with pytest.raises(BadRequestError) as raised:
        chat(openai, file)
    assert raised.value.param == f"messages[0].content[0].file{place}"


def test_too_much_is_refused(openai: OpenAI) -> None:
    long = base64.b64encode(b"word " * 4000).decode()
    for use in (ask, chat):
        with pytest.raises(BadRequestError) as raised:
            use(openai, {"file_data": long, "filename": "long.txt"})
        assert raised.value.code == "context_length_exceeded"
        with pytest.raises(BadRequestError, match="at most 32 files"):
            use(openai, *[{"file_id": stored(openai)}] * 33)


def test_pictures_are_pictures(openai: OpenAI) -> None:
    """This model reads text only, and says so of the picture, not of a file that cannot be read."""
    data = encoded(picture(), "PNG")
    for file in (
        {"file_id": stored(openai, "p.png", data)},
        {"file_data": base64.b64encode(data).decode(), "filename": "p.png"},
    ):
        with pytest.raises(BadRequestError, match="this model takes text only"):
            ask(openai, file)
        with pytest.raises(BadRequestError, match="this model takes text only"):
            chat(openai, file)


def test_documents_of_anthropic(live: LiveServer, openai: OpenAI) -> None:
    with anthropic.Anthropic(base_url=live.url, api_key=KEYS[0], max_retries=0) as client:
        sources: list[Any] = [
            {"type": "base64", "media_type": "application/pdf", "data": PDF},
            {"type": "file", "file_id": stored(openai, "birds.pdf", base64.b64decode(PDF))},
        ]
        for source in sources:
            for nested in (False, True):
                block: Any = {"type": "document", "source": source, "title": "Birds"}
                use: Any = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
                result: Any = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
                turns: Any = [{"role": "user", "content": "Look!"}, {"role": "assistant", "content": [use]},
                              {"role": "user", "content": [result]}]  # fmt: skip
                flat = [{"role": "user", "content": [block, {"type": "text", "text": "When?"}]}]
                messages: Any = turns if nested else flat
                client.messages.create(model="m", max_tokens=16, messages=messages)
                assert "<document>\n<title>Birds</title>\nHerons nest in April.\n</document>" in SEEN[-1]
                counted = client.messages.count_tokens(model="m", messages=messages)
                assert counted.input_tokens > 20
        wrong: list[Any] = [
            {"type": "base64", "media_type": "application/zip", "data": PDF},
            {"type": "base64", "media_type": "application/pdf", "data": "?"},
            {"type": "base64", "media_type": "application/pdf"},
            {"type": "file", "file_id": "file-none"},
            {"type": "url", "url": "http://127.0.0.1/a.pdf"},
        ]
        for source in wrong:
            block = {"type": "document", "source": source}
            with pytest.raises(anthropic.BadRequestError):
                client.messages.create(model="m", max_tokens=16, messages=[{"role": "user", "content": [block]}])


def test_what_is_no_conversation_is_refused_as_ever(live: LiveServer) -> None:
    wrong: list[Any] = [5, [5], [{"role": "user", "content": 5}], [{"role": "user", "content": [5, None]}], [[]]]
    with live.client(headers={"x-api-key": KEYS[0]}) as http:
        for messages in wrong:
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/chat/completions/render"):
                answered = http.post(path, json={"model": "m", "messages": messages, "max_tokens": 4})
                assert answered.status_code == 400, (path, messages)
        parts = [{"type": "file", "file": {"file_data": TEXT, "filename": "handbook.md"}}]
        rendered = http.post("/v1/chat/completions/render", json={"messages": [{"role": "user", "content": parts}]})
        assert "thirty vacation days" in rendered.json()["prompt"]


def test_without_a_sandbox_files_are_refused_with_the_reason(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes, name: str) -> None:
        raise SandboxUnavailableError("install bubblewrap")

    monkeypatch.setattr("glm4.documents.loading.load_document", refuse)
    with pytest.raises(BadRequestError, match="this server cannot read documents: install bubblewrap"):
        ask(openai, {"file_data": PDF, "filename": "other.pdf"})
    with pytest.raises(BadRequestError, match="install bubblewrap"):
        openai.vector_stores.create(file_ids=[stored(openai, "new.txt", b"new")])
