"""Big bodies: refused before they cost anything, prepared a few at a time, within a budget; others go on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from raw_http import refused

from glm4.server import memory
from glm4.server.body import MAX_CONTAINERS, MAX_VALUES
from glm4.server.errors import ApiError
from glm4.server.memory import WAITING_THREADS, Budget, RequestMemory, Shares, WaitingThreads, shares
from glm4.system.memory import available_memory, limit_memory
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from stepped import until

CONTEXT = 512


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nHello", max_model_len=CONTEXT)
    with serve(config("tiny"), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


TEXT = "word " * 2_000_000
CONVERSATION = [{"role": "user", "content": TEXT}]
TOO_LONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "tokenize": ("/tokenize", {"prompt": TEXT}, "prompt"),
    "tokenize, special": ("/tokenize", {"prompt": TEXT, "parse_special": True}, "prompt"),
    "tokenize, messages": ("/tokenize", {"messages": CONVERSATION}, "messages"),
    "chat": ("/v1/chat/completions", {"messages": CONVERSATION}, "messages"),
    "continued": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": TEXT}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        "messages",
    ),
    "render": ("/v1/chat/completions/render", {"messages": CONVERSATION}, "messages"),
    "template": ("/apply-template", {"messages": CONVERSATION}, "messages"),
    "completions": ("/v1/completions", {"prompt": TEXT}, "prompt"),
    "several": ("/v1/completions", {"prompt": ["a", TEXT]}, "prompt"),
    "responses": ("/v1/responses", {"input": TEXT}, "input"),
    "input tokens": ("/v1/responses/input_tokens", {"input": TEXT}, "input"),
    "embeddings": ("/v1/embeddings", {"input": [TEXT]}, "prompt"),
    "llama.cpp": ("/completion", {"prompt": TEXT}, "prompt"),
    "llama.cpp, mixed": ("/completion", {"prompt": [1, TEXT]}, "prompt"),
    "bias": ("/completion", {"prompt": "a", "logit_bias": [[TEXT, 1.0]]}, "logit_bias"),
    "many biases": ("/completion", {"prompt": "a", "logit_bias": [["x" * 100, 1.0]] * 1000}, "logit_bias"),
}


@pytest.mark.parametrize(("path", "body", "param"), TOO_LONG.values(), ids=TOO_LONG)
def test_what_cannot_fit_is_refused_unread(
    server: LiveServer,
    client: httpx.Client,
    path: str,
    body: dict[str, Any],
    param: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest: list[int] = []
    tokenizer = server.llm.tokenizer
    encode = tokenizer._encode_plain

    def watched(text: str) -> list[int]:
        longest.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokenizer, "_encode_plain", watched)
    message = refused(client.post(path, json=body), 400, param)["message"]
    assert "at least" in message or "characters" in message
    assert max(longest, default=0) < 10_000, "a text was tokenized before it was refused"


def test_anthropic_clients_are_told_in_their_words(client: httpx.Client) -> None:
    body = {"messages": CONVERSATION, "max_tokens": 5}
    error = client.post("/v1/messages", json=body).json()["error"]
    assert error["message"].startswith("prompt is too long: ")
    assert error["message"].endswith(f" tokens > {CONTEXT - 1} maximum")
    assert client.post("/v1/messages/count_tokens", json={"messages": CONVERSATION}).status_code == 400


def test_a_prompt_somewhat_beyond_the_context_is_counted(client: httpx.Client) -> None:
    text = "word " * (10 * CONTEXT)
    counted = len(client.post("/tokenize", json={"prompt": text}).json()["tokens"])
    error = refused(client.post("/v1/completions", json={"prompt": text}), 400, "prompt")
    assert f"the prompt has {counted} tokens" in error["message"]
    count = client.post("/v1/messages/count_tokens", json={"messages": [{"role": "user", "content": text}]})
    assert count.json()["input_tokens"] > CONTEXT


MANY: dict[str, bytes] = {
    "arrays": b"[" + b"[]," * MAX_CONTAINERS + b"1]",
    "objects": b"[" + b'{"a":1},' * MAX_CONTAINERS + b"1]",
    "numbers": b"[" + b"1," * MAX_VALUES + b"1]",
    "texts": b"[" + b'"",' * MAX_VALUES + b"1]",
    "members": b"{" + b",".join(b'"%d":1' % n for n in range(MAX_VALUES + 2)) + b"}",
}


@pytest.mark.parametrize("value", MANY.values(), ids=MANY)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/detokenize"])
def test_too_many_values_are_refused_unparsed(client: httpx.Client, path: str, value: bytes) -> None:
    body = b'{"input": "x", "metadata": ' + value + b"}"
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "several smaller requests" in response.text


def test_commas_and_brackets_of_a_long_text_are_not_values(client: httpx.Client) -> None:
    text = "[,{" * 400_000
    response = client.post("/v1/completions", json={"prompt": text})
    assert "tokens" in refused(response, 400, "prompt")["message"]


def test_as_many_ids_as_may_be_are_detokenized(client: httpx.Client) -> None:
    ids = [72] * 1_000_000
    assert len(client.post("/detokenize", json={"tokens": ids}).json()["prompt"]) >= len(ids)


def test_ordinary_requests_pass_long_ones(server: LiveServer, client: httpx.Client) -> None:
    """A long text stands still in the tokenizer; everything else goes on, and further long ones wait in turn."""
    tokenizer = server.llm.tokenizer
    encode, goes_on, inside = tokenizer._encode_plain, threading.Event(), threading.Semaphore(0)

    def slow(text: str) -> list[int]:
        if len(text) > 50_000:
            inside.release()
            assert goes_on.wait(60)
        return encode(text)

    object.__setattr__(tokenizer, "_encode_plain", slow)
    answers: list[int] = []
    content = json.dumps({"prompt": "é" * 60_000}).encode()  # long as a body; the text may be encoded

    def ask() -> None:
        answers.append(client.post("/tokenize", content=content).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        assert inside.acquire(timeout=60)
        budget = server.state.memory
        until(
            lambda: budget.bodies.free == budget.bodies.total - 4 * memory.BODY_COST * len(content),
            "all bodies are there",
        )
        for _ in range(20):
            assert client.post("/tokenize", json={"prompt": "x"}).status_code == 200
            assert client.get("/health").status_code == 200
        assert budget.lanes.free == 0
        assert answers == []
    finally:
        goes_on.set()
        for thread in threads:
            thread.join()
        object.__delattr__(tokenizer, "_encode_plain")
    assert answers == [200] * 4
    until(lambda: budget.bodies.free == budget.bodies.total, "all is given back")
    assert (budget.preparing.free, budget.lanes.free) == (budget.preparing.total, budget.lanes.total)


def test_a_body_beyond_the_memory_is_refused_and_harms_nobody(tmp_path: Any) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\nHello")
    try:
        with serve(config("tiny", max_memory=256 << 20), llm) as server, server.client() as client:
            budget = server.state.memory
            assert budget.bodies.total == 16 << 20
            error = refused(client.post("/tokenize", json={"prompt": "x" * (3 << 20)}), 413)
            assert "--max-memory" in error["message"]
            assert client.post("/tokenize", json={"prompt": "x" * 10_000}).status_code == 200
            until(lambda: budget.bodies.free == budget.bodies.total, "all is given back")
    finally:
        limit_memory(1 << 60)


def test_a_limit_of_our_own_is_free_memory_to_loaders() -> None:
    before = available_memory()
    try:
        limit_memory(1 << 20)
        assert available_memory() == 0, "this process has more already"
        limit_memory(1 << 60)
        assert available_memory() > before // 2
    finally:
        limit_memory(1 << 60)


@pytest.mark.parametrize("total", [512 << 20, 1 << 30, 16 << 30, 1 << 40])
def test_shares_leave_most_to_the_model(total: int) -> None:
    parts = shares(total, 256 << 20)
    assert 0 < parts.total <= total // 3
    assert parts.store <= 256 << 20


def test_budgets_are_given_out_in_order() -> None:
    async def run() -> None:
        budget = Budget(10, 60)
        order: list[str] = []

        async def take(name: str, nbytes: int) -> None:
            await budget.take(nbytes)
            order.append(name)

        await take("first", 6)
        big, small = asyncio.ensure_future(take("big", 8)), asyncio.ensure_future(take("small", 2))
        gone = asyncio.ensure_future(take("gone", 1))
        await asyncio.sleep(0)
        assert order == ["first"], "nobody overtakes"
        gone.cancel()
        budget.give(6)
        await asyncio.gather(big, small)
        assert order == ["first", "big", "small"]
        budget.give(10)
        assert budget.free == budget.total
        with pytest.raises(ApiError) as refused:
            await budget.take(11)
        assert refused.value.status == 413

    asyncio.run(run())


def test_who_waits_too_long_for_memory_is_told_to_come_back() -> None:
    async def run() -> None:
        owner = RequestMemory(Shares(100, 100, 0, 100), timeout=0.01)
        held, late = owner.body(), owner.body()
        await held.grow(100 // memory.BODY_COST)
        with pytest.raises(ApiError) as refused:
            await late.grow(100 // memory.BODY_COST)
        assert (refused.value.status, refused.value.code) == (503, "out_of_memory")
        assert int(refused.value.headers["Retry-After"]) > 0
        late.release()
        held.release()
        held.release()
        assert owner.bodies.free == 100

    asyncio.run(run())


def test_pictures_wait_for_their_memory_and_a_large_one_is_alone() -> None:
    async def run() -> None:
        owner = RequestMemory(Shares(100, 100, 0, 10), timeout=60)
        first, second = owner.body(), owner.body()
        await first.hold_pictures(1000)  # more than there is: it has all
        assert owner.pictures.free == 0
        waiting = asyncio.ensure_future(second.hold_pictures(4))
        await asyncio.sleep(0)
        assert not waiting.done()
        await first.hold_pictures(6)  # its files are gone, its pixels are left
        await waiting
        assert owner.pictures.free == 0
        for body in (first, second, second):
            body.release()
        assert owner.pictures.free == 10
        owner.waiting.close()

    asyncio.run(run())


def test_who_is_canceled_while_a_thread_waits_gives_the_thread_back_at_its_end() -> None:
    async def run() -> None:
        threads, goes_on = WaitingThreads(60), threading.Event()
        jobs = [asyncio.ensure_future(threads.run(lambda: goes_on.wait(60))) for _ in range(WAITING_THREADS)]
        last = asyncio.ensure_future(threads.run(lambda: True))
        await asyncio.sleep(0.01)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert threads._free.free == 0, "they are still busy"
        assert not last.done()
        goes_on.set()
        assert await last
        while threads._free.free < WAITING_THREADS:
            await asyncio.sleep(0.001)
        threads.close()

    asyncio.run(run())


def test_a_client_that_leaves_in_the_middle_of_its_body_gives_its_memory_back(server: LiveServer) -> None:
    import socket

    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    budget = server.state.memory.bodies
    with socket.create_connection(server.address) as sock:
        sock.sendall(head + json.dumps({"prompt": "x" * 500_000}).encode())
        until(lambda: budget.free < budget.total, "it has begun")
    until(lambda: budget.free == budget.total, "all is given back")
