"""OpenAI's own client library on /v1/completions, and requests as lm-eval's `local-completions` sends them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sdk_server import KEY, random_server

from glm4.sampling_params import SamplingParams
from live import LiveServer

TEXTS = ["The capital of France", "1 2 3 4", "你好"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with random_server(tmp_path_factory.mktemp("random") / "m") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def ids_of(server: LiveServer) -> list[list[int]]:
    return [server.llm.tokenizer.encode(text) for text in TEXTS]


def test_text_and_ids_are_the_same_prompt(server: LiveServer, client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}
    prefixed = [server.llm.tokenizer.encode_prompt(text) for text in TEXTS]
    by_text = client.completions.create(prompt=TEXTS, **options)
    by_ids = client.completions.create(prompt=prefixed, **options)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    one = client.completions.create(prompt=prefixed[0], **options)
    assert one.choices[0].text == by_ids.choices[0].text
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == sum(map(len, prefixed))
    assert by_text.usage.completion_tokens == 24


def test_stream(server: LiveServer, client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": TEXTS, "n": 2, "seed": 3, "max_tokens": 9, "echo": True, "logprobs": 2}
    whole = client.completions.create(**options)
    texts, scores = [""] * 6, [[] for _ in range(6)]  # type: ignore[var-annotated]
    with client.completions.create(**options, stream=True) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] += choice.text
            scores[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert scores == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert all(text.startswith(TEXTS[at // 2]) for at, text in enumerate(texts))


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_scoring_as_lm_eval_asks_for_it(server: LiveServer, max_tokens: int) -> None:
    """`loglikelihood`: token ids in batches, echoed with log-probabilities; the sums must be the model's own."""
    batch = ids_of(server)
    payload = {
        "model": "tiny", "prompt": batch, "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "seed": 1234,
        "echo": True,
    }  # fmt: skip
    with server.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        response = client.post("/v1/completions", json=payload)
    assert response.status_code == 200
    for ids, choice in zip(batch, sorted(response.json()["choices"], key=lambda one: one["index"]), strict=True):
        context = len(ids) // 2
        scores, top = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(scores) == len(choice["logprobs"]["tokens"]) == len(ids) + max_tokens
        assert scores[0] is None
        (own,) = server_scores(server, ids)
        assert scores[: len(ids)] == own
        continuation = slice(context, len(scores) - max_tokens)  # as lm-eval cuts it
        assert sum(scores[continuation]) == pytest.approx(sum(own[context:]))  # type: ignore[arg-type]
        for at in range(context, len(ids)):
            assert max(top[at].values()) >= scores[at] - 1e-6, "is_greedy compares with the likeliest"


def server_scores(server: LiveServer, ids: list[int]) -> list[list[float | None]]:
    """What the model itself says, asked through the same engine without any of the server's formats."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}) as client:
        params = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        rows = client.post("/v1/completions", json=params).json()["prompt_logprobs"]
    return [[None if row is None else row[str(token)]["logprob"] for row, token in zip(rows, ids, strict=True)]]


def test_generation_as_lm_eval_asks_for_it(server: LiveServer, client: openai.OpenAI) -> None:
    """`generate_until`: token ids, stop strings, greedy."""
    (ids, *_) = ids_of(server)
    options: Any = {"model": "tiny", "prompt": [ids], "max_tokens": 60, "temperature": 0, "seed": 1234}
    free = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = free[10:12]
    cut = client.completions.create(**options, stop=[stop, "<|endoftext|>"], extra_body={"ignore_eos": True})
    assert cut.choices[0].text == free[: free.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert SamplingParams(stop=[stop]).stop_strings == (stop,)


def test_token_ids_come_back(server: LiveServer, client: openai.OpenAI) -> None:
    (ids, *_) = ids_of(server)
    extra = {"return_token_ids": True, "ignore_eos": True}
    answer: Any = client.completions.create(model="tiny", prompt=ids, max_tokens=5, temperature=0, extra_body=extra)
    assert answer.choices[0].prompt_token_ids == ids
    assert len(answer.choices[0].token_ids) == 5
    again: Any = client.completions.create(
        model="tiny", prompt=[*ids, *answer.choices[0].token_ids[:4]], max_tokens=1, temperature=0, extra_body=extra
    )
    assert again.choices[0].token_ids == answer.choices[0].token_ids[4:]
