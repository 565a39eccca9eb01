"""Mutated requests: no 5xx, no other meaning without a word, and a neighbor's stream that notices nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fuzzing import Fuzzer, Mutation, mutations
from good_requests import GOOD

from glm4.llm import LLM
from live import LiveServer, config, serve
from tiny import write_folder

SEED = 14
_NEIGHBOR: dict[str, Any] = {
    "messages": [{"role": "user", "content": "tell me everything"}],
    "temperature": 0,
    "max_tokens": 48,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 3,
    "stream": True,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    # Greedy by default, so that an answer without a temperature can be compared, too.
    folder = write_folder(
        tmp_path_factory.mktemp("model") / "m", chat_template=None, generation_config={"do_sample": False}
    )
    llm = LLM(str(folder), dtype="fp32", max_num_seqs=8, max_model_len=2048)
    with serve(config("tiny", allowed_origins=("localhost",)), llm) as running:
        yield running


class Neighbor:
    """Asks for the same greedy stream again and again, and keeps every distinct one."""

    def __init__(self, server: LiveServer) -> None:
        self.streams: Counter[str] = Counter()
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._server.client() as client:
            while not self._over.is_set():
                self.streams[self._stream(client)] += 1

    def _stream(self, client: httpx.Client) -> str:
        text = client.post("/v1/chat/completions", json=_NEIGHBOR).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        content = "".join(choice["delta"].get("content") or "" for choice in choices)
        tokens = [token for choice in choices for token in (choice.get("logprobs") or {}).get("content") or []]
        return json.dumps([content, tokens])

    def __enter__(self) -> Neighbor:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


def report(mutation: Mutation, finding: str) -> str:
    where = "/".join(str(part) for part in mutation.site)
    shown = json.dumps(mutation.body)[:600]
    return f"{mutation.kind} {mutation.good.path} at {where} {mutation.repeated or ''}: {finding}\n    {shown}"


def test_the_good_requests_are_answered(server: LiveServer) -> None:
    with server.client() as client:
        for good in GOOD:
            response = client.post(good.path, json=good.body)
            assert response.status_code == 200, (good, response.text)


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mutated_requests(server: LiveServer, count: int) -> None:
    with server.client() as client, Neighbor(server) as neighbor:
        fuzzer = Fuzzer(client)
        found = [
            report(mutation, finding)
            for mutation in mutations(GOOD, SEED + count, count)
            for finding in fuzzer.findings(mutation)
        ]
    assert not found, f"{len(found)} findings:\n" + "\n".join(found)
    assert len(neighbor.streams) == 1, "the neighbor's stream changed"
    assert neighbor.streams.total() >= 2
    assert not [value for value in server.leftovers.values() if value]
