"""The `remote` backend and servers that fail: late, hostile, refusing, or gone. No request's failure harms another."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import (
    CERTIFICATE,
    FaultyServer,
    Step,
    by_id,
    drop,
    faulty_server,
    hang,
    no_such_route,
    raw,
    status,
    tokens,
)
from remote_routes import COMPLETIONS, GENERATE, ROUTES

from glm4 import LLM, AsyncLLM, SamplingParams
from glm4.backends.remote import RemoteOptions
from glm4.backends.remote.client import MAX_LINE
from glm4.batch.job import BatchJob
from glm4.errors import Glm4Error, InvalidRequestError, RemoteError, RemoteUnavailableError
from glm4.outputs import StreamChunk
from glm4.requests.processor import Processor
from glm4.server.config import ModelSpec, ServerConfig
from live import serve
from stepped import until
from tiny import write_folder

PARAMS = SamplingParams(temperature=0.0, max_tokens=3)
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=ROUTES)
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[FaultyServer]:
    with faulty_server(Processor.open(folder).tokenizer) as running:
        running.token_route = by_id if request.param == GENERATE else no_such_route
        yield running
        assert set(running.paths) <= {GENERATE if running.token_route is by_id else COMPLETIONS}


def opened(server: FaultyServer, folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), backend="remote", base_url=server.url, retry_delay=0.0, **options)


# Retries


def test_a_lost_connection_is_tried_again_before_the_first_token(server: FaultyServer, folder: Path) -> None:
    server.plan += [drop, status(503, "loading", Retry_After="0"), drop, tokens(3)]
    with opened(server, folder) as llm:
        (output,) = llm.generate("abc", PARAMS)
        assert output.outputs[0].token_ids == [97, 98, 99]
        assert output.metrics.num_cached_tokens == 2
    assert len(server.bodies) == 4
    assert server.bodies[0] == server.bodies[3]


def test_never_after_it(server: FaultyServer, folder: Path) -> None:
    server.plan += [tokens(1, then=drop)]
    with opened(server, folder) as llm:
        with pytest.raises(RemoteUnavailableError, match="in the middle of an answer"):
            llm.generate("abc", PARAMS)
        assert not llm.has_unfinished_requests()
    assert len(server.bodies) == 1


def test_and_not_for_ever(server: FaultyServer, folder: Path) -> None:
    server.plan += [drop] * 9
    with opened(server, folder, max_retries=2) as llm, pytest.raises(RemoteUnavailableError, match="connection"):
        llm.generate("abc", PARAMS)
    assert len(server.bodies) == 3


# Time-outs


def test_a_first_token_that_does_not_come(server: FaultyServer, folder: Path) -> None:
    server.plan += [hang]
    with opened(server, folder, first_token_timeout=1.0) as llm:
        with pytest.raises(RemoteUnavailableError, match="no first token for 1 seconds"):
            llm.generate("abc", PARAMS)
        assert server.hung_up.wait(60)
    assert len(server.bodies) == 1


def test_a_further_token_that_does_not_come(server: FaultyServer, folder: Path) -> None:
    server.plan += [tokens(2, then=hang)]
    with opened(server, folder, token_timeout=0.3) as llm:
        chunks: list[StreamChunk] = []
        with pytest.raises(RemoteUnavailableError, match=r"no further token for 0\.3 seconds"):
            chunks += llm.stream_generate("abc", PARAMS)
        assert server.hung_up.wait(60)


def test_a_finished_text_is_complete_without_its_account(server: FaultyServer, folder: Path) -> None:
    choice = {"index": 0, "text": "abc", "token_ids": [97, 98, 99], "finish_reason": "length"}
    server.plan += [raw(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")]
    with opened(server, folder) as llm:
        assert llm.generate("abc", PARAMS)[0].outputs[0].token_ids == [97, 98, 99]


# Others are not harmed


def test_one_request_fails_and_the_others_do_not(server: FaultyServer, folder: Path) -> None:
    server.plan += [tokens(3), tokens(1, then=drop), tokens(3)]
    with opened(server, folder, max_num_seqs=1) as llm:
        first, failed, last = llm.generate(["a", "b", "c"], PARAMS)
        assert first.outputs[0].token_ids == last.outputs[0].token_ids == [97, 98, 99]
        assert first.error is last.error is None
        assert isinstance(failed.error, RemoteUnavailableError)
        assert (failed.outputs[0].token_ids, failed.outputs[0].finish_reason) == ([97], "error")


def test_a_failed_sample_ends_its_request(server: FaultyServer, folder: Path) -> None:
    server.plan += [hang, status(400, "no")]
    with opened(server, folder) as llm:
        with pytest.raises(InvalidRequestError):
            llm.generate("abc", PARAMS.replace(n=2))
        assert server.hung_up.wait(60), "its other sample was hung up on"
        assert not llm.backend.has_unfinished_requests()


def test_async_readers_get_their_own_errors(server: FaultyServer, folder: Path) -> None:
    server.plan += [hang, tokens(1, then=drop), tokens(3)]

    async def scenario() -> None:
        llm = AsyncLLM(opened(server, folder))
        streams = [await llm.submit(llm.llm.prepare_prompt("abc", PARAMS))]
        await asyncio.to_thread(until, lambda: len(server.bodies) == 1, "the first is under way")
        with pytest.raises(RemoteUnavailableError):
            await llm.generate("abc", PARAMS)
        assert (await llm.generate("abc", PARAMS)).outputs[0].token_ids == [97, 98, 99]
        streams[0].close()
        await asyncio.to_thread(server.hung_up.wait, 60)
        assert server.hung_up.is_set(), "an abort hangs up on the server"
        assert not llm.failed
        await llm.close()

    asyncio.run(scenario())


def test_a_batch_keeps_what_asking_again_may_answer(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    lines = [
        {"custom_id": name, "url": "/v1/completions", "body": {"prompt": name, "max_tokens": 3, "temperature": 0}}
        for name in ("a", "b", "c")
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    server.plan += [tokens(3), tokens(1, then=drop), status(400, "not that one")]
    with opened(server, folder, max_num_seqs=1) as llm:
        with BatchJob(tmp_path / "in", tmp_path / "out") as job, pytest.raises(RemoteUnavailableError):
            job.run(llm, model="m")
        rows = {row["custom_id"]: row for row in map(json.loads, (tmp_path / "out").read_text().splitlines())}
        assert {name: row["response"]["status_code"] for name, row in rows.items()} == {"a": 200, "c": 400}
        with BatchJob(tmp_path / "in", tmp_path / "out") as job:
            assert job.run(llm, model="m").completed == 1


def test_a_server_in_front_says_what_may_be_said(server: FaultyServer, folder: Path) -> None:
    options = {"backend": "remote", "base_url": server.url, "max_retries": 0, "api_key": KEY}
    with serve(ServerConfig((ModelSpec(str(folder), ("front",), options),))) as front, front.client() as client:
        for step, expected in ((drop, 503), (status(500, "cuda"), 502), (status(400, "too hot"), 400)):
            server.plan += [step]
            response = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
            assert response.status_code == expected
            assert "127.0.0.1" not in response.text
            assert KEY not in response.text
        assert client.get("/health").status_code == 200


# What servers say


@pytest.mark.parametrize(
    ("code", "error", "match"),
    [
        (400, InvalidRequestError, "the remote server refuses the request .HTTP 400: it says so"),
        (401, RemoteError, "refuses access .*GLM4_REMOTE_API_KEY"),
        (404, InvalidRequestError, "HTTP 404"),
        (429, RemoteUnavailableError, "is busy or not ready .HTTP 429"),
        (503, RemoteUnavailableError, "HTTP 503"),
        (500, RemoteError, "has failed .HTTP 500"),
        (307, RemoteError, "redirects are not followed"),
    ],
)
def test_statuses_become_errors(
    server: FaultyServer, folder: Path, code: int, error: type[Glm4Error], match: str
) -> None:
    server.plan += [status(code, f"it says so\x1b[31m\nwith {KEY} " + "x" * 5000, Location="http://127.0.0.1:1/")]
    with opened(server, folder, max_retries=0, api_key=KEY) as llm, pytest.raises(error, match=match) as caught:
        llm.generate("abc", PARAMS)
    text = str(caught.value)
    assert type(caught.value) is error
    assert len(text) < 600
    assert text.isprintable()
    assert KEY not in text
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": "x", **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (raw(b"data: {not json\n\n"), "not JSON"),
        (raw(b"data: [1]\n\n"), "no object"),
        (raw(event(token_ids=[97]), content_type="application/json"), "does not stream"),
        (raw(event(token_ids=[288])), "outside the vocabulary"),
        (raw(event(token_ids=[-1])), "outside the vocabulary"),
        (raw(event(token_ids=["97"])), "outside the vocabulary"),
        (raw(event()), "without its token ids"),
        (raw(event(token_ids=[97] * 4)), "more tokens than were asked for"),
        (raw(event(token_ids=[97], finish_reason="bored")), "unknown finish_reason 'bored'"),
        (raw(event(finish_reason="stop", token_ids=[]), event(token_ids=[97])), "should not be there"),
        (raw(b"data: " + b"x" * (MAX_LINE + 1)), "line of more than"),
        (
            raw(b'data: {"error": {"message": "out of pages", "type": "internal_error"}}\n\n'),
            "has failed .*out of pages",
        ),
    ],
)
def test_nonsense_is_refused(server: FaultyServer, folder: Path, step: Step, match: str) -> None:
    server.plan += [step]
    with opened(server, folder, max_retries=0) as llm:
        with pytest.raises(RemoteError, match=match):
            llm.generate("abc", PARAMS)
        assert llm.generate("abc", PARAMS)[0].outputs[0].token_ids == [97, 98, 99]


@pytest.mark.parametrize(
    "logprobs",
    [
        {},
        {"token_logprobs": [1]},
        {"tokens": ["a"], "token_logprobs": ["high"]},
        {"content": [{"token_id": 97, "logprob": -1.0, "top_logprobs": []}]},
        {"content": [{"token_id": token, "logprob": -1.0, "top_logprobs": []} for token in (97, 99)]},
        {"content": [{"token_id": token, "logprob": "high", "top_logprobs": []} for token in (97, 98)]},
        {"content": [{"token_id": token, "logprob": -1.0, "top_logprobs": [5]} for token in (97, 98)]},
        {"content": 5},
    ],
)
def test_log_probabilities_of_another_form_are_refused(server: FaultyServer, folder: Path, logprobs: Any) -> None:
    server.plan += [raw(event(token_ids=[97, 98], logprobs=logprobs))]
    with opened(server, folder) as llm, pytest.raises(RemoteError, match=r"not (OpenAI|vLLM)'s"):
        llm.generate("abc", PARAMS.replace(logprobs=1))


def test_a_stop_id_that_comes_before_the_end_still_is_one(server: FaultyServer, folder: Path) -> None:
    server.plan += [
        raw(event(token_ids=[97]), event(token_ids=[257]), event(token_ids=None, text="", finish_reason="stop"))
    ]
    with opened(server, folder) as llm:
        (output,) = llm.generate("abc", PARAMS.replace(stop_token_ids=[257], skip_special_tokens=False))
    assert output.outputs[0].token_ids == [97, 257]
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("a", 257)


# Opening


def test_nobody_listens(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RemoteUnavailableError, match="connection to http://127"):
            LLM(str(folder), backend="remote", base_url=url, max_retries=0)


def test_ids_may_stand_in_the_log_probabilities_only(server: FaultyServer, folder: Path) -> None:
    server.token_route = no_such_route
    server.probe = {"text": "a", "logprobs": {"tokens": ["token_id:97"], "token_logprobs": [-1.0]}}
    named = {"tokens": ["token_id:98"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:98": -0.5}]}
    server.plan += [tokens(3, token_ids=None, logprobs=named)] * 2
    with opened(server, folder) as llm:
        (output,) = llm.generate("abc", PARAMS)
        assert output.outputs[0].token_ids == [98, 98, 98]
        assert output.outputs[0].logprobs is None
        (output,) = llm.generate("abc", PARAMS.replace(logprobs=1))
        assert output.outputs[0].logprobs is not None
        assert output.outputs[0].logprobs[2].top == ((98, -0.5),)
    assert server.bodies[0]["return_tokens_as_token_ids"] is True


def test_a_server_without_ids_is_refused(server: FaultyServer, folder: Path) -> None:
    server.token_route = no_such_route
    server.probe = {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}
    with pytest.raises(RemoteError, match="return_token_ids"):
        opened(server, folder)


@pytest.mark.parametrize(
    "step",
    [
        status(403, "start me with --enable-scale-out"),
        status(400, "unsupported field 'stream'"),
        raw(b'{"choices": []}', content_type="application/json"),
        raw(event(token_ids=[97], logprobs={"content": [{"token": "token_id:97", "logprob": -1.0}]})),
        raw(event(token_ids=[97])),
        raw(event(token_ids=[97], logprobs={"content": [{"token_id": 98}]})),
        raw(event(token_ids=[])),
        raw(b"data: {no\n\n"),
    ],
    ids=["off", "refuses", "no stream", "names", "no scores", "other scores", "no token", "no JSON"],
)
def test_a_token_route_of_another_kind_is_left_alone(server: FaultyServer, folder: Path, step: Step) -> None:
    server.token_route = step
    with opened(server, folder, max_retries=0) as llm:
        assert llm.generate("abc", PARAMS)[0].outputs[0].token_ids == [97, 98, 99]
    assert server.paths == [COMPLETIONS]


def test_a_token_route_that_is_not_ready_is_tried_again(server: FaultyServer, folder: Path) -> None:
    steps = [status(503, "loading"), by_id]
    server.token_route = lambda handler: steps.pop(0)(handler)
    with opened(server, folder) as llm:
        llm.generate("abc", PARAMS)
    assert server.paths == [GENERATE]
    server.token_route = by_id


def test_no_ids_are_sent_before_the_tokenizers_are_compared(server: FaultyServer, folder: Path) -> None:
    server.routes["/tokenize"] = {"tokens": [1, 2, 3]}
    asked: list[str] = []
    server.token_route = lambda handler: asked.append(handler.path)
    with pytest.raises(RemoteError, match="is not that of"):
        opened(server, folder)
    assert not asked


def test_the_rank_is_the_servers_unless_it_counts_rows_that_are_left_out(server: FaultyServer, folder: Path) -> None:
    server.token_route = by_id
    entry = {"token_id": 97, "logprob": -3.0, "rank": 7, "top_logprobs": [
        {"token_id": 280, "logprob": -0.1, "rank": 1}, {"token_id": 98, "logprob": -0.2, "rank": 2}]}  # fmt: skip
    ranks = []
    for owner in ("vllm", "glm4"):
        server.models[0]["owned_by"] = owner
        server.plan += [raw(event(token_ids=[97], logprobs={"content": [entry]}, finish_reason="stop"))]
        with opened(server, folder) as llm:
            logprobs = llm.generate("abc", PARAMS.replace(logprobs=1))[0].outputs[0].logprobs
        assert logprobs is not None
        ranks.append((logprobs[0].rank, logprobs[0].top))
    assert ranks == [(None, ((98, -0.2),)), (7, ((280, -0.1),))]


def test_a_tokenizer_that_cannot_be_compared_is_refused(server: FaultyServer, folder: Path) -> None:
    server.probe = {"text": "a", "token_ids": [97]}
    server.routes["/tokenize"] = None
    with pytest.raises(RemoteError, match="cannot be compared"):
        opened(server, folder)
    server.routes["/tokenize"] = {"tokens": [1, 2, 3]}
    with pytest.raises(RemoteError, match="is not that of"):
        opened(server, folder)
    server.probe, server.routes = None, {"/tokenize": None, "/detokenize": None}
    opened(server, folder).close()  # the ids of the probe's own prompt are enough


def test_a_server_of_something_else_is_refused(server: FaultyServer, folder: Path) -> None:
    server.models = []
    with pytest.raises(RemoteError, match="lists no models"):
        opened(server, folder)


def test_rows_without_a_token_are_kept_out_by_bias(server: FaultyServer, folder: Path) -> None:
    with opened(server, folder) as llm:
        llm.generate("abc", PARAMS.replace(logit_bias={97: 2.0}, seed=3))
        unnamed = llm.tokenizer.unnamed_ids(llm.info.vocab_size).tolist()
    options = server.bodies[0].get("sampling_params", server.bodies[0])
    bias = options["logit_bias"]
    assert bias.pop("97") == 2.0
    assert bias == dict.fromkeys(map(str, unnamed), -100.0)
    assert options["seed"] == 3
    assert options["top_k"] == -1


# TLS


def test_certificates_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_server(Processor.open(folder).tokenizer, secure=True) as server:
        with pytest.raises(RemoteError, match=r"certificate of https://127.* cannot be verified"):
            opened(server, folder)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        server.plan += [hang]
        with opened(server, folder) as llm:
            llm.add("stuck", llm.prepare_prompt("abc", PARAMS))
            until(lambda: len(server.bodies) == 1, "it is under way")
            llm.abort("stuck")
            assert server.hung_up.wait(60), "an abort hangs up, also on a connection that is encrypted"
            assert llm.generate("abc", PARAMS)[0].outputs[0].token_ids == [97, 98, 99]


def test_https_to_a_server_without_it(server: FaultyServer, folder: Path) -> None:
    with pytest.raises(RemoteError, match="does it speak https"):
        LLM(str(folder), backend="remote", base_url=server.url.replace("http:", "https:"), max_retries=0)


# Options


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"base_url": "ftp://127.0.0.1"}, "base_url"),
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"base_url": "http://user:pass-word@127.0.0.1"}, "base_url"),
        ({"base_url": "http://127.0.0.1:99999"}, "base_url"),
        ({"base_url": "http://127.0.0.1/?a=b"}, "base_url"),
        ({"base_url": "http://127.0.0.1/\r\nX: y"}, "base_url"),
        ({"api_key": "two\r\nlines-secret"}, "api_key"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"token_timeout": float("nan")}, "token_timeout"),
    ],
)
def test_impossible_options(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RemoteOptions(**{"base_url": "http://127.0.0.1", **options})
    assert caught.value.param == param
    assert "pass-word" not in str(caught.value)
    assert "secret" not in str(caught.value)
