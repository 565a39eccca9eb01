"""Raw prompts: the model's prefix is there once or not at all, as asked; markers are tokens only where asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm4.batch.job import BatchJob
from glm4.llm import LLM
from glm4.tokenizer import Tokenizer
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from tiny import special_id

USER = "<|user|>"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "ok")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    own = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "ok")
    with serve(config(), own) as running:
        yield running


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose operator reads markers in raw prompts."""
    own = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "ok")
    with serve(config(parse_special=True), own) as running:
        yield running


def ids_of(server: LiveServer, prompt: Any, **fields: Any) -> list[int]:
    body = {"prompt": prompt, "return_token_ids": True, **fields}
    with server.client() as client:
        response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["prompt_token_ids"]
    return ids


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def cases(tokenizer: Tokenizer) -> list[tuple[Any, dict[str, Any], list[int]]]:
    """Prompt, fields, ids."""
    prefix, hi, tag = list(tokenizer.prefix_ids), plain(tokenizer, "hi"), [special_id(USER)]
    spelled = "[gMASK]<sop>"
    return [
        ("hi", {}, prefix + hi),
        ("hi", {"add_special_tokens": True}, prefix + hi),
        ("hi", {"add_special_tokens": False}, hi),
        ("hi", {"add_special_tokens": None, "parse_special": None}, prefix + hi),
        (hi, {}, hi),
        (hi, {"add_special_tokens": False}, hi),
        (hi, {"add_special_tokens": True}, prefix + hi),
        (prefix + hi, {"add_special_tokens": True}, prefix + hi),
        ([hi], {"add_special_tokens": True}, prefix + hi),
        (USER + "hi", {}, prefix + plain(tokenizer, USER + "hi")),
        (USER + "hi", {"parse_special": True}, prefix + tag + hi),
        (USER + "hi", {"parse_special": True, "add_special_tokens": False}, tag + hi),
        (spelled + USER + "hi", {}, prefix + plain(tokenizer, USER + "hi")),
        (spelled + USER + "hi", {"parse_special": True}, prefix + tag + hi),
        (spelled + USER + "hi", {"parse_special": True, "add_special_tokens": False}, prefix + tag + hi),
        (spelled + "hi", {"add_special_tokens": False}, plain(tokenizer, spelled + "hi")),
        (spelled + spelled, {"parse_special": True}, prefix + prefix),
    ]


def test_completions(server: LiveServer) -> None:
    for prompt, fields, expected in cases(server.llm.tokenizer):
        assert ids_of(server, prompt, **fields) == expected, (prompt, fields)


def test_python(llm: LLM) -> None:
    for prompt, fields, expected in cases(llm.tokenizer):
        given = prompt[0] if isinstance(prompt[0], list) else prompt
        options = {name: value for name, value in fields.items() if value is not None}
        (output,) = llm.generate(given, **options)
        assert output.prompt_token_ids == expected, (prompt, fields)


def test_batch(llm: LLM, tmp_path: Path) -> None:
    listed = cases(llm.tokenizer)
    source = tmp_path / "in.jsonl"
    rows = [
        {"custom_id": str(at), "method": "POST", "url": "/v1/completions",
         "body": {"prompt": prompt, "return_token_ids": True, **fields}}
        for at, (prompt, fields, _) in enumerate(listed)
    ]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with BatchJob(source, tmp_path / "out.jsonl") as job:
        job.run(llm, model="m")
    found = {}
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[int(row["custom_id"])] = row["response"]["body"]["choices"][0]["prompt_token_ids"]
    assert found == {at: expected for at, (_, _, expected) in enumerate(listed)}


def test_the_operator_allows_markers_and_a_request_refuses_them(allowing: LiveServer) -> None:
    tokenizer = allowing.llm.tokenizer
    prefix, hi, tag = list(tokenizer.prefix_ids), plain(tokenizer, "hi"), [special_id(USER)]
    assert ids_of(allowing, USER + "hi") == prefix + tag + hi
    assert ids_of(allowing, USER + "hi", parse_special=False) == prefix + plain(tokenizer, USER + "hi")
    with allowing.client() as client:
        chat = {"messages": [{"role": "user", "content": USER}], "return_token_ids": True}
        ids = client.post("/v1/chat/completions", json=chat).json()["prompt_token_ids"]
        assert ids.count(special_id(USER)) == 1, "a chat's text is text all the same"
        native = client.post("/completion", json={"prompt": USER + "hi", "n_predict": 1}).json()
        assert native["tokens_evaluated"] == len(prefix + tag + hi)


def test_an_echo_shows_what_was_sent(server: LiveServer) -> None:
    """The prefix is not in the echoed text, so its tokens are not in the lists about that text."""
    tokenizer = server.llm.tokenizer
    hi = plain(tokenizer, "hé")
    cases: list[tuple[Any, dict[str, Any], str, int]] = [
        ("hé", {}, "hé", 0),
        ("hé", {"add_special_tokens": False}, "hé", 0),
        (hi, {"add_special_tokens": True}, "hé", 0),
        (hi, {}, "hé", 0),
        ("[gMASK]<sop>hé", {}, "[gMASK]<sop>hé", 2),
    ]
    with server.client() as client:
        for prompt, fields, shown, more in cases:
            body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, **fields}
            response = client.post("/v1/completions", json=body).json()
            (choice,) = response["choices"]
            assert choice["text"] == shown + "o"
            logprobs = choice["logprobs"]
            assert len(logprobs["tokens"]) == more + len(hi) + 1
            place = len(shown) - 2
            assert logprobs["text_offset"][more:] == [place, place + 1, place + 1, place + 2]
            known = logprobs["token_logprobs"]
            assert known[0] is None, "nothing that was sent precedes it"
            assert all(value is not None for value in known[1:])


def test_tokenizer_info_and_tokenize_as_evaluation_harnesses_use_them(server: LiveServer) -> None:
    tokenizer = server.llm.tokenizer
    with server.client() as client:
        info = client.get("/tokenizer_info").json()
        assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(info)
        end = info["eos_token"]
        assert special_id(end) in tokenizer.eos_ids | server.llm.processor.stop_ids

        def ids(**body: Any) -> list[int]:
            found: list[int] = client.post("/tokenize", json=body).json()["tokens"]
            return found

        assert ids(prompt=end, add_special_tokens=False) == [special_id(end)]
        assert ids(prompt=end, add_special_tokens=False, parse_special=False) == plain(tokenizer, end)
        assert ids(prompt=end) == [*tokenizer.prefix_ids, *plain(tokenizer, end)]
        assert ids(prompt=end, parse_special=True) == [*tokenizer.prefix_ids, special_id(end)]
        assert ids(prompt="[gMASK]<sop>hi", parse_special=True) == [*tokenizer.prefix_ids, *plain(tokenizer, "hi")]


def test_wrong_types_are_named(server: LiveServer) -> None:
    with server.client() as client:
        for name in ("add_special_tokens", "parse_special"):
            response = client.post("/v1/completions", json={"prompt": "x", name: "yes"})
            assert (response.status_code, response.json()["error"]["param"]) == (400, name)
