"""vLLM's token route over HTTP: ids in, ids out, the same ids that this process computes without a server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from answers import read_events

from adapter_files import factors, write_adapter
from glm4 import LLM, SamplingParams
from glm4.api.schemas import components
from glm4.api.vllm import PATH
from live import LiveServer, config, serve
from stepped import stepped, until
from tiny import VOCAB_SIZE, special_id, write_folder

PROMPT = [258, 260, 97, 98, 99]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = LLM(str(write_folder(tmp_path_factory.mktemp("model"))), dtype="fp32", max_model_len=256, max_num_seqs=4)
    adapter = tmp_path_factory.mktemp("poems")
    llm.load_adapter("poems", str(write_adapter(adapter, factors(llm.backend.model.config, 1))))  # type: ignore[attr-defined]
    with serve(config("tiny"), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def schema(name: str) -> jsonschema.Draft202012Validator:
    shown = {"schemas": {**components("vllm"), **components("openai")}}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": shown})


def whole(client: httpx.Client, sampling: dict[str, Any], **body: Any) -> Any:
    answer = client.post(PATH, json={"token_ids": PROMPT, **body, "sampling_params": {**GREEDY, **sampling}})
    assert answer.status_code == 200, answer.text
    schema("Generation").validate(answer.json())
    return answer.json()


def streamed(client: httpx.Client, sampling: dict[str, Any], **body: Any) -> list[Any]:
    sent = {"token_ids": PROMPT, **body, "sampling_params": {**GREEDY, **sampling}, "stream": True}
    answer = client.post(PATH, json=sent)
    assert answer.status_code == 200, answer.text
    *events, done = read_events(answer.text)
    assert done == "[DONE]"
    validator = schema("GenerationChunk")
    for one in events:
        validator.validate(one)
    return events


def joined(events: list[Any], index: int = 0) -> dict[str, Any]:
    """The choice that a stream's deltas add up to."""
    choices = [choice for one in events for choice in one["choices"] if choice["index"] == index]
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    scores = [choice["logprobs"] for choice in choices]
    return {
        **choices[-1],
        "token_ids": [token for choice in choices for token in choice["token_ids"]],
        "logprobs": None if scores[0] is None else {"content": [entry for one in scores for entry in one["content"]]},
    }


def test_ids_are_those_of_the_model_and_a_stream_brings_the_same(server: LiveServer, client: httpx.Client) -> None:
    params = SamplingParams(**GREEDY, logprobs=3)
    (output,) = server.llm.generate([PROMPT], params)
    expected = output.outputs[0]
    answer = whole(client, {"logprobs": 3}, model="tiny")
    (choice,) = answer["choices"]
    assert choice["token_ids"] == expected.token_ids
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert (answer["model"], answer["output_mode"]) == ("tiny", "tokens")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(PROMPT), 8)
    assert expected.logprobs is not None
    for entry, ours in zip(choice["logprobs"]["content"], expected.logprobs, strict=True):
        assert (entry["token_id"], entry["rank"]) == (ours.token_id, ours.rank)
        assert entry["logprob"] == pytest.approx(ours.logprob, abs=1e-5)
        assert [(one["token_id"], one["rank"]) for one in entry["top_logprobs"]] == [
            (token, place) for place, (token, _) in enumerate(ours.top, 1)
        ]
    *events, last = streamed(client, {"logprobs": 3}, stream_options={"include_usage": True})
    assert len(events) == 8
    assert joined(events) == choice
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)
    assert all(one["usage"] is None for one in events)


def test_seeds_samples_and_the_prompts_own_scores(client: httpx.Client) -> None:
    sampling = {"temperature": 1.0, "seed": 5, "n": 3}
    answer = whole(client, {**sampling, "prompt_logprobs": 1}, return_token_ids=True)
    texts = [tuple(choice["token_ids"]) for choice in answer["choices"]]
    assert len(set(texts)) == 3
    assert answer["prompt_token_ids"] == PROMPT
    assert answer["prompt_logprobs"][0] is None
    assert all(str(token) in row for token, row in zip(PROMPT[1:], answer["prompt_logprobs"][1:], strict=True))
    events = streamed(client, sampling, return_token_ids=True)
    assert [tuple(joined(events, index)["token_ids"]) for index in range(3)] == texts
    assert [one.get("prompt_token_ids") for one in events] == [PROMPT] + [None] * (len(events) - 1)


def test_what_stopped_it_is_said(client: httpx.Client) -> None:
    (plain,) = whole(client, {})["choices"]
    stop = plain["token_ids"][3]
    end = plain["token_ids"].index(stop) + 1
    user = special_id("<|user|>")
    cases: list[tuple[dict[str, Any], list[int], object]] = [
        ({"stop_token_ids": [stop]}, plain["token_ids"][:end], stop),
        ({"ignore_eos": False, "logit_bias": {str(user): 100}}, [user], None),
        ({"logit_bias": {"113": 100}, "stop": "qq"}, [113, 113], "qq"),
    ]
    for sampling, ids, reason in cases:
        for choice in (whole(client, sampling)["choices"][0], joined(streamed(client, sampling))):
            assert (choice["token_ids"], choice["finish_reason"], choice["stop_reason"]) == (ids, "stop", reason)
    events = streamed(client, {"n": 2, "stop_token_ids": [stop]})
    assert [joined(events, index)["stop_reason"] for index in range(2)] == [stop, stop]


def test_without_a_limit_the_context_is_filled(client: httpx.Client) -> None:
    (choice,) = whole(client, {"max_tokens": None})["choices"]
    assert (len(choice["token_ids"]), choice["finish_reason"]) == (256 - len(PROMPT), "length")


def test_rows_without_a_token_are_never_sampled(server: LiveServer, client: httpx.Client) -> None:
    unnamed = set(server.llm.tokenizer.unnamed_ids(VOCAB_SIZE).tolist())
    (choice,) = whole(client, {"temperature": 50.0, "seed": 1, "max_tokens": 200, "logprobs": 20})["choices"]
    assert unnamed
    assert not unnamed & set(choice["token_ids"])


def test_a_form_is_kept(client: httpx.Client) -> None:
    sampling = {"temperature": 1.0, "seed": 2, "max_tokens": 30, "ignore_eos": False}
    (choice,) = whole(client, {**sampling, "structured_outputs": {"regex": "[ab]{3}c"}})["choices"]
    assert bytes(token for token in choice["token_ids"] if token < 256)[3:] == b"c"


def test_adapters_are_model_names(server: LiveServer, client: httpx.Client) -> None:
    answers = [whole(client, {}, model=name)["choices"][0]["token_ids"] for name in ("tiny", "poems")]
    assert answers[0] != answers[1]
    (near,) = server.llm.generate([PROMPT], SamplingParams(**GREEDY), adapter="poems")
    assert answers[1] == near.outputs[0].token_ids


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "sampling", "status", "param", "code"),
    [
        ({"token_ids": [97, VOCAB_SIZE]}, {}, 400, "token_ids", "invalid_value"),
        ({"token_ids": [97, -1]}, {}, 400, "token_ids", "invalid_value"),
        ({"token_ids": [97, 10**30]}, {}, 400, "token_ids", "invalid_value"),
        ({"token_ids": [97] * 256}, {}, 400, "token_ids", "context_length_exceeded"),
        ({"model": "nobody"}, {}, 404, "model", "model_not_found"),
        ({}, {"stop_token_ids": [VOCAB_SIZE]}, 400, "sampling_params.stop_token_ids", "invalid_value"),
        ({}, {"logit_bias": {str(VOCAB_SIZE): 1}}, 400, "sampling_params.logit_bias", "invalid_value"),
        ({}, {"structured_outputs": {"regex": "("}}, 400, "sampling_params.structured_outputs", "invalid_value"),
        ({}, {"top_p": 2}, 400, "sampling_params.top_p", "invalid_value"),
        ({"content_parts": []}, {}, 400, "content_parts", "invalid_value"),
    ],
)
def test_errors_name_the_field(
    client: httpx.Client, stream: bool, body: Any, sampling: Any, status: int, param: str, code: str
) -> None:
    sent = {"token_ids": PROMPT, **body, "sampling_params": {**GREEDY, **sampling}, "stream": stream}
    answer = client.post(PATH, json=sent)
    assert answer.status_code == status, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_request_ids(client: httpx.Client) -> None:
    assert whole(client, {}, request_id="mine-1")["request_id"] == "generate-tokens-mine-1"
    assert {one["request_id"] for one in streamed(client, {}, request_id="mine-2")} == {"generate-tokens-mine-2"}
    body = {"token_ids": PROMPT, "sampling_params": GREEDY}
    named = client.post(PATH, json=body, headers={"X-Request-Id": "header-3"})
    assert named.json()["request_id"] == "generate-tokens-header-3"
    unnamed = client.post(PATH, json=body)
    assert unnamed.json()["request_id"] == f"generate-tokens-{unnamed.headers['x-request-id']}"


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_ends_it_within_a_step(tmp_path: Path, stream: bool) -> None:
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_num_seqs=2, max_model_len=1024)
    steps = stepped(llm)
    body = {"token_ids": PROMPT, "sampling_params": {**GREEDY, "max_tokens": 1000}, "stream": stream}
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json".encode()
    data = json.dumps(body).encode()
    with serve(config(), llm) as running:
        try:
            with socket.create_connection(running.address) as client:
                client.sendall(b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(data), data))
                steps.allow(3)
                until(lambda: steps.waits and running.leftovers["pages"] > 0, "a running request")
            until(lambda: running.leftovers["places"] == 0, "the server noticed")
            before = steps.steps
            steps.allow(1)
            until(lambda: not any(running.leftovers.values()), "nothing is left")
            assert steps.steps == before + 1
        finally:
            steps.open()
