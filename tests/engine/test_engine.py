"""The engine on a tiny random model: batching, preemption, aborts and page accounting never change an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig, fair_shares
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.precision import PRECISIONS
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams

CONFIG = ModelConfig(
    architecture="glm",
    vocab_size=120,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1.5625e-7,
    rope_theta=1e4,
    partial_rotary_factor=0.5,
    attention_bias=True,
    tie_word_embeddings=False,
)
MODEL = random_model(CONFIG, PRECISIONS["fp32"], get_kernels())


@pytest.fixture(params=["fp32", "int8"])
def kv_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache that engines of this test have."""
    monkeypatch.setitem(OPTIONS, "kv_dtype", request.param)
    return str(request.param)


OPTIONS = {"kv_dtype": "fp32"}


def engine(pages: int = 64, max_model_len: int | None = None, caching: bool = True, **scheduler: Any) -> Engine:
    limit = max_model_len or min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    cache = KVCache(CONFIG, pages, OPTIONS["kv_dtype"])
    return Engine(MODEL, cache, limit, SchedulerConfig(**scheduler), enable_prefix_caching=caching)


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


def request(name: str, ids: list[int], **options: object) -> GenerationRequest:
    return GenerationRequest(name, Prompt(ids), SamplingParams(**({"temperature": 0, "max_tokens": 12} | options)))  # type: ignore[arg-type]


def run(made: Engine) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    while made.has_unfinished_requests():
        for output in made.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
    return answers


def alone(item: GenerationRequest) -> list[int]:
    """The answer of an engine that runs nothing else, shares nothing and guesses nothing."""
    made = engine(caching=False, max_speculative_rows=0)
    made.add_request(item)
    return run(made)[item.request_id]


def mixed_requests() -> list[GenerationRequest]:
    lengths = (1, 3, 200, 31, 32, 33, 90, 5)
    greedy = [request(f"g{i}", prompt(i, n)) for i, n in enumerate(lengths)]
    sampled = [request(f"s{i}", prompt(i, n), temperature=1.0, seed=i) for i, n in enumerate(lengths[:3])]
    return greedy + sampled


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize(
    ("pages", "scheduler"),
    [
        (64, {}),
        (64, {"max_num_batched_tokens": 17, "max_prefill_beside_decode": 5}),
        (64, {"max_num_seqs": 2}),
        (8, {"max_num_seqs": 16}),
    ],
    ids=["plenty", "small chunks", "two at a time", "short of pages"],
)
def test_neighbours_chunks_and_preemption_change_nothing(pages: int, scheduler: dict[str, Any]) -> None:
    made = engine(pages, **scheduler)
    items = mixed_requests()
    for item in items:
        made.add_request(item)
    answers = run(made)
    for item in items:
        assert answers[item.request_id] == alone(item), item.request_id
    assert made.prefix_cache.num_available_pages == pages


@pytest.mark.usefixtures("kv_dtype")
def test_running_out_of_pages_preempts_and_repeats_nothing() -> None:
    made = engine(pages=6, max_num_seqs=4)
    items = [request(f"p{i}", prompt(i, 30), max_tokens=60) for i in range(4)]
    for item in items:
        made.add_request(item)
    answers = run(made)
    assert made.scheduler.num_preemptions > 0
    assert all(answers[item.request_id] == alone(item) for item in items)


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    made = engine(max_num_batched_tokens=32)
    made.add_request(request("long", prompt(0, 450)))
    made.add_request(request("short", prompt(1, 10)))
    made.step()
    first = made.step()
    assert [output.request_id for output in first] == ["short"]


def test_prefill_does_not_stall_a_running_stream() -> None:
    made = engine(max_prefill_beside_decode=16)
    made.add_request(request("stream", prompt(0, 4)))
    made.step()
    made.add_request(request("long", prompt(1, 300)))
    for _ in range(8):
        assert [output.request_id for output in made.step()] == ["stream"]


def test_abort_frees_pages_at_once_in_every_state() -> None:
    made = engine(max_num_seqs=2, max_num_batched_tokens=16)
    for name, length in (("prefill", 100), ("decode", 3), ("waiting", 3)):
        made.add_request(request(name, prompt(0, length)))
    made.step()
    for name in ("waiting", "decode", "prefill", "never existed"):
        made.abort(name)
    assert made.prefix_cache.num_available_pages == made.cache.num_pages
    assert not made.has_unfinished_requests()
    assert made.step() == []


def finish(made: Engine, item: GenerationRequest) -> GenerationOutput:
    made.add_request(item)
    outputs: list[GenerationOutput] = []
    while made.has_unfinished_requests():
        outputs += made.step()
    return outputs[-1]


def test_finish_reasons() -> None:
    first = alone(request("x", [1, 2, 3], max_tokens=3))
    params = SamplingParams(temperature=0, max_tokens=9)
    by_model = finish(engine(), GenerationRequest("a", Prompt([1, 2, 3]), params, frozenset({first[1]})))
    assert (by_model.finish_reason, by_model.stop_token_id) == ("stop", first[1])
    by_caller = finish(engine(), request("b", [1, 2, 3], stop_token_ids=[first[0]]))
    assert (by_caller.finish_reason, by_caller.stop_token_id) == ("stop", first[0])
    ignored = GenerationRequest("c", Prompt([1, 2, 3]), params.replace(ignore_eos=True), frozenset(first))
    assert finish(engine(), ignored).finish_reason == "length"
    full = finish(engine(max_model_len=10), request("d", [1, 2, 3], max_tokens=None))
    assert full.finish_reason == "length"


def test_the_context_is_filled_to_its_last_token() -> None:
    made = engine(pages=2, max_model_len=64)
    made.add_request(request("a", prompt(0, 60), max_tokens=None))
    assert len(run(made)["a"]) == 4


@pytest.mark.usefixtures("kv_dtype")
def test_prompt_logprobs_do_not_depend_on_chunks() -> None:
    ids = prompt(0, 150)

    def scored(**scheduler: Any) -> tuple[object, ...]:
        made = engine(**scheduler)
        made.add_request(request("a", ids, prompt_logprobs=2, max_tokens=1))
        while made.has_unfinished_requests():
            for output in made.step():
                if output.prompt_logprobs is not None:
                    return output.prompt_logprobs
        raise AssertionError("no prompt log-probabilities came")

    whole = scored()
    assert len(whole) == len(ids)
    assert whole[0] is None
    assert [entry.token_id for entry in whole[1:]] == ids[1:]  # type: ignore[attr-defined]
    assert scored(max_num_batched_tokens=13) == whole


def test_logprobs_sum_to_one_over_the_vocabulary() -> None:
    made = engine()
    made.add_request(request("a", [1, 2], logprobs=20, max_tokens=2))
    for _ in range(2):
        (output,) = made.step()
        entry = output.logprobs[0]
        assert entry.token_id == output.token_ids[0]
        assert entry.rank == 1
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert sum(np.exp(value) for _, value in entry.top) <= 1.0 + 1e-5


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (request("a", []), "prompt"),
        (request("a", [0, 120]), "prompt"),
        (request("a", [-1]), "prompt"),
        (request("a", [1], logit_bias={120: 1.0}), "logit_bias"),
        (request("a", [1], stop_token_ids=[-1]), "stop_token_ids"),
    ],
)
def test_requests_that_can_never_run_are_refused(item: GenerationRequest, param: str) -> None:
    made = engine()
    with pytest.raises(InvalidRequestError) as caught:
        made.add_request(item)
    assert caught.value.param == param
    assert not made.has_unfinished_requests()


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="512 tokens"):
        engine().add_request(request("a", prompt(0, 512)))


def test_a_request_id_cannot_be_used_twice() -> None:
    made = engine()
    made.add_request(request("a", [1]))
    with pytest.raises(InvalidRequestError, match="in use"):
        made.add_request(request("a", [1]))


@pytest.mark.parametrize(
    ("wants", "budget", "expected"),
    [
        ([], 10, []),
        ([100, 10], 32, [22, 10]),
        ([5, 5, 5], 3, [1, 1, 1]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([3, 100, 100], 203, [3, 100, 100]),
        ([3, 100, 100], 0, [0, 0, 0]),
    ],
)
def test_fair_shares(wants: list[int], budget: int, expected: list[int]) -> None:
    assert fair_shares(wants, budget) == expected


@pytest.mark.usefixtures("kv_dtype")
def test_a_second_request_reuses_the_first_ones_pages() -> None:
    made = engine()
    ids = prompt(0, 100)
    first = finish(made, request("a", [*ids, 1]))
    second = finish(made, request("b", [*ids, 2]))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 96)
    made.add_request(request("c", [*ids, 2]))
    assert run(made)["c"] == alone(request("c", [*ids, 2]))


@pytest.mark.usefixtures("kv_dtype")
def test_prompt_logprobs_are_complete_although_the_prompt_is_known() -> None:
    made = engine()
    finish(made, request("a", prompt(0, 100)))
    made.add_request(request("b", prompt(0, 100), prompt_logprobs=0, max_tokens=1))
    (output,) = [output for _ in range(3) for output in made.step()]
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 100


def test_an_answer_needs_a_token_that_does_not_end_it() -> None:
    """Otherwise there would be nothing to sample, and the engine would end with this request."""
    every_id = list(range(CONFIG.vocab_size))
    one = engine()
    with pytest.raises(InvalidRequestError) as caught:
        one.add_request(request("a", [1, 2], stop_token_ids=every_id, min_tokens=1))
    assert caught.value.param == "stop_token_ids"
    one.add_request(request("b", [1, 2], stop_token_ids=every_id))
    assert one.step()[0].finish_reason == "stop"
