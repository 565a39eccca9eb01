"""Mutated requests: no 5xx, no other meaning without a word, and a neighbor's stream that notices nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fuzzing import Fuzzer, Mutation, mutations
from good_requests import GOOD, WITH_PICTURES
from neighbor import Neighbor

from glm4.llm import LLM
from live import LiveServer, config, serve
from stepped import until
from vision_folder import write_vision_folder

SEED = 14
ALL = [*GOOD, *WITH_PICTURES]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    # Greedy by default, so that an answer without a temperature can be compared, too.
    folder = write_vision_folder(tmp_path_factory.mktemp("model") / "m", generation_config={"do_sample": False})
    llm = LLM(str(folder), dtype="fp32", max_num_seqs=8, max_model_len=2048)
    with serve(config("tiny", allowed_origins=("localhost",)), llm) as running:
        yield running


def report(mutation: Mutation, finding: str) -> str:
    where = "/".join(str(part) for part in mutation.site)
    shown = json.dumps(mutation.body)[:600]
    return f"{mutation.kind} {mutation.good.path} at {where} {mutation.repeated or ''}: {finding}\n    {shown}"


def test_the_good_requests_are_answered(server: LiveServer) -> None:
    with server.client() as client:
        for good in ALL:
            response = client.post(good.path, json=good.body)
            assert response.status_code == 200, (good, response.text)


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mutated_requests(server: LiveServer, count: int) -> None:
    with server.client() as client, Neighbor(server) as neighbor:
        fuzzer = Fuzzer(client)
        found = [
            report(mutation, finding)
            for mutation in mutations(ALL, SEED + count, count)
            for finding in fuzzer.findings(mutation)
        ]
    assert not found, f"{len(found)} findings:\n" + "\n".join(found)
    assert len(neighbor.streams) == 1, "the neighbor's stream changed"
    assert neighbor.streams.total() >= 2
    # The last answer may be there before its place is free.
    until(lambda: not any(server.leftovers.values()), "nothing is held")
