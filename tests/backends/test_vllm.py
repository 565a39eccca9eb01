"""The vllm backend with a real vLLM on the CPU, beside our own engine on the same tiny checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_models import CONTEXT, PROMPTS, Pair, both, outputs_of, request, tokens_of

from adapter_files import factors, settings, write_adapter
from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.backends.base import Capability
from glm4.engine.protocol import GenerationRequest
from glm4.errors import (
    CheckpointError,
    Glm4Error,
    InvalidRequestError,
    ModelClosedError,
    PromptTooLongError,
    UnsupportedModelError,
)
from tiny import VOCAB_SIZE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, seed=5, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with both(tmp_path_factory.mktemp("chatglm"), "chatglm") as made:
        yield made


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with both(tmp_path_factory.mktemp("hf"), "hf", max_adapters=2, max_lora_rank=8) as made:
        yield made


def ids_of(llm: LLM, params: SamplingParams, ids: list[int] = PROMPTS[0], **more: Any) -> list[int]:
    return tokens_of(outputs_of(llm, [request("one", ids, params, **more)])["one"])


def check_greedy(pair: Pair) -> None:
    requests = [request(f"r{n}", ids, GREEDY) for n, ids in enumerate(PROMPTS)]
    found, wanted = outputs_of(pair.vllm, requests), outputs_of(pair.local, requests)
    assert {name: tokens_of(parts) for name, parts in found.items()} == {
        name: tokens_of(parts) for name, parts in wanted.items()
    }


# Tokens


def test_greedy_tokens_are_those_of_the_local_engine(pair: Pair) -> None:
    check_greedy(pair)


def test_a_late_request_gets_what_it_gets_alone(pair: Pair) -> None:
    alone, backend = ids_of(pair.vllm, GREEDY, PROMPTS[1]), pair.vllm.backend
    backend.add_request(request("first", PROMPTS[2], replace(GREEDY, max_tokens=60)))
    first: list[int] = []
    while len(first) < 5:
        first += [token for output in backend.step() for token in output.token_ids]
    assert tokens_of(outputs_of(pair.vllm, [request("late", PROMPTS[1], GREEDY)])["late"]) == alone


def outputs_with(pair: Pair, name: str, params: SamplingParams, ids: list[int]) -> Any:
    found = [outputs_of(llm, [request(name, ids, params)])[name] for llm in (pair.vllm, pair.local)]
    assert tokens_of(found[0]) == tokens_of(found[1])
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"logit_bias": {5: 100.0, 6: 99.0, 7: -100.0}},
        {"top_k": 1, "temperature": 1.0},
        {"top_p": 0.0, "temperature": 5.0},
        {"min_p": 1.0, "temperature": 1.0},
    ],
)
def test_options_mean_what_they_mean_locally(pair: Pair, options: dict[str, Any]) -> None:
    for n, ids in enumerate(PROMPTS[:2]):
        outputs_with(pair, f"r{n}", GREEDY.replace(**options), ids)


def test_seeds(pair: Pair) -> None:
    first, again = ids_of(pair.vllm, SEEDED), ids_of(pair.vllm, SEEDED)
    assert first == again
    assert first != ids_of(pair.vllm, SEEDED, sample_index=1)
    assert first != ids_of(pair.vllm, SEEDED.replace(seed=6))
    free = SEEDED.replace(seed=None)
    assert ids_of(pair.vllm, free) != ids_of(pair.vllm, free)


def test_log_probabilities(pair: Pair) -> None:
    for ids in PROMPTS:
        found, wanted = outputs_with(pair, "scored", GREEDY.replace(logprobs=4, prompt_logprobs=3), ids)
        pairs = [
            (theirs, ours)
            for f, w in zip([found], [wanted], strict=True)
            for theirs, ours in zip(
                [*f[0].prompt_logprobs[1:], *(one for part in f for one in part.logprobs)],
                [*w[0].prompt_logprobs[1:], *(one for part in w for one in part.logprobs)],
                strict=True,
            )
        ]
        assert found[0].prompt_logprobs[0] is None
        assert all(part.prompt_logprobs is None for part in found[1:])
        for theirs, ours in pairs:
            assert theirs.token_id == ours.token_id
            # Far below the listed ones, ids without a token may be among those above.
            assert theirs.rank == ours.rank or (theirs.rank is None and (ours.rank or 0) > 4)
            assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
            assert [logprob for _, logprob in theirs.top] == pytest.approx([lp for _, lp in ours.top], abs=1e-4)
            assert len({token for token, _ in theirs.top}) == len(ours.top)


def test_ids_without_a_token_are_never_sampled(pair: Pair) -> None:
    unnamed = set(pair.vllm.tokenizer.unnamed_ids(VOCAB_SIZE).tolist())
    assert unnamed
    forced = dict.fromkeys(unnamed, 100.0)
    wild = SamplingParams(temperature=5.0, max_tokens=20, ignore_eos=True, logit_bias=forced)
    requests = [request(f"r{n}", [97 + n], wild.replace(seed=n)) for n in range(4)]
    for parts in outputs_of(pair.vllm, requests).values():
        assert len(tokens_of(parts)) == 20
        assert not unnamed & set(tokens_of(parts))


# Where it ends


def test_stop_ids(pair: Pair) -> None:
    plain = ids_of(pair.vllm, GREEDY)
    third = plain[3]
    at = plain.index(third) + 1
    params = SamplingParams(temperature=0.0, max_tokens=16)
    for own, given in ((frozenset({third}), ()), (frozenset[int](), (third,))):
        parts = outputs_of(pair.vllm, [request("r", PROMPTS[0], params.replace(stop_token_ids=given), stop_ids=own)])[
            "r"
        ]
        assert tokens_of(parts) == plain[:at]
        assert (parts[-1].finish_reason, parts[-1].stop_token_id) == ("stop", third)
    assert ids_of(pair.vllm, GREEDY, stop_ids=frozenset({third})) == plain
    late = {"stop_ids": frozenset({third})}
    kept = outputs_with_min(pair, params.replace(min_tokens=at + 2), late)
    assert third not in kept[: at + 2]


def outputs_with_min(pair: Pair, params: SamplingParams, more: dict[str, Any]) -> list[int]:
    found = [ids_of(llm, params, **more) for llm in (pair.vllm, pair.local)]
    assert found[0] == found[1]
    return found[0]


def test_without_max_tokens_it_ends_where_the_context_does(pair: Pair) -> None:
    parts = outputs_of(pair.vllm, [request("r", [97] * (CONTEXT - 9), GREEDY.replace(max_tokens=None))])["r"]
    assert len(tokens_of(parts)) == 9
    assert parts[-1].finish_reason == "length"


# Grammars


def compiled(pair: Pair, form: StructuredOutputs) -> Any:
    return pair.vllm.prepare_prompt("", SamplingParams(structured_outputs=form)).constraint


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_grammar_is_followed_beside_free_requests_which_stay_as_they_are(pair: Pair, ignore_eos: bool) -> None:
    regex = compiled(pair, StructuredOutputs(regex="[ab]{3,9}c(d|e)"))
    params = GREEDY.replace(ignore_eos=ignore_eos, max_tokens=40)
    free = {f"free{n}": request(f"free{n}", ids, GREEDY) for n, ids in enumerate(PROMPTS)}
    bound = {f"bound{n}": request(f"bound{n}", ids, params, constraint=regex) for n, ids in enumerate(PROMPTS)}
    found = outputs_of(pair.vllm, [*bound.values(), *free.values()])
    wanted = outputs_of(pair.local, [*bound.values(), *free.values()])
    for name, parts in found.items():
        assert tokens_of(parts) == tokens_of(wanted[name])
        assert (parts[-1].finish_reason, parts[-1].stop_token_id) == (
            wanted[name][-1].finish_reason,
            wanted[name][-1].stop_token_id,
        )
    assert {found[name][-1].finish_reason for name in bound} == {"stop"}


def test_json_through_the_whole_model(pair: Pair) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "北京"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    params = SamplingParams(temperature=1.0, max_tokens=100, n=3, structured_outputs=StructuredOutputs(json=schema))
    for output in pair.vllm.generate("abc", params)[0].outputs:
        assert output.finish_reason == "stop"
        assert json.loads(output.text)["a"] in ("x", "北京")


def test_a_stop_id_ends_a_grammar_where_its_text_is_complete_and_not_before(pair: Pair) -> None:
    digits = compiled(pair, StructuredOutputs(regex="[0-9]{4,60}"))
    stop = pair.vllm.tokenizer.special_id("<|user|>")
    params = SamplingParams(temperature=0.0, max_tokens=100, logit_bias={stop: 100.0})
    parts = outputs_of(pair.vllm, [request("r", PROMPTS[0], params, constraint=digits, stop_ids=frozenset({stop}))])[
        "r"
    ]
    assert len(tokens_of(parts)) == 5
    assert (tokens_of(parts)[-1], parts[-1].stop_token_id) == (stop, stop)
    longer = params.replace(min_tokens=9)
    parts = outputs_of(pair.vllm, [request("r", PROMPTS[0], longer, constraint=digits, stop_ids=frozenset({stop}))])[
        "r"
    ]
    assert len(tokens_of(parts)) == 10


def test_a_constraint_of_somebody_else_is_refused(pair: Pair) -> None:
    class Own:
        own_ends: frozenset[int] = frozenset()

        def start(self) -> Any:
            raise AssertionError

    with pytest.raises(InvalidRequestError, match="StructuredOutputs"):
        pair.vllm.backend.add_request(request("r", PROMPTS[0], GREEDY, constraint=Own()))
    assert not pair.vllm.has_unfinished_requests()


# Requests that cannot run, and those that are dropped


@pytest.mark.parametrize(
    ("bad", "error", "param"),
    [
        (request("bad", [VOCAB_SIZE], GREEDY), InvalidRequestError, "prompt"),
        (request("bad", [-1], GREEDY), InvalidRequestError, "prompt"),
        (request("bad", [], GREEDY), InvalidRequestError, "prompt"),
        (request("bad", [97] * CONTEXT, GREEDY), PromptTooLongError, "prompt"),
        (request("bad", [97], GREEDY.replace(stop_token_ids=[VOCAB_SIZE])), InvalidRequestError, "stop_token_ids"),
        (request("bad", [97], GREEDY.replace(logit_bias={VOCAB_SIZE: 1.0})), InvalidRequestError, "logit_bias"),
        (request("bad", [97], GREEDY, adapter="nobody"), InvalidRequestError, "model"),
        (request("bad", [97], GREEDY, pooling="mean"), InvalidRequestError, "pooling"),
        (request("good", [97], GREEDY), InvalidRequestError, "request_id"),
        (request("bad", [97], GREEDY.replace(min_tokens=1, stop_token_ids=range(VOCAB_SIZE))), InvalidRequestError,
         "stop_token_ids"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_run_is_refused_and_the_engine_lives_on(
    pair: Pair, bad: GenerationRequest, error: type[Exception], param: str
) -> None:
    pair.vllm.backend.add_request(request("good", [97], GREEDY))
    with pytest.raises(error) as caught:
        pair.vllm.backend.add_request(bad)
    assert getattr(caught.value, "param", None) == param
    assert list(outputs_of(pair.vllm, [])) == ["good"]
    assert ids_of(pair.vllm, GREEDY, [97]) == ids_of(pair.local, GREEDY, [97])


def test_nothing_follows_an_abort(pair: Pair) -> None:
    backend = pair.vllm.backend
    backend.add_request(request("dropped", PROMPTS[0], GREEDY.replace(max_tokens=400)))
    while not backend.step():
        pass
    backend.abort("dropped")
    backend.abort("unknown")
    assert not backend.has_unfinished_requests()
    assert list(outputs_of(pair.vllm, [request("kept", PROMPTS[0], GREEDY)])) == ["kept"]


def test_samples_beyond_the_limit_of_their_group_wait(pair: Pair) -> None:
    backend, most = pair.vllm.backend, 0
    for n in range(5):
        backend.add_request(request(f"g#{n}", PROMPTS[0], GREEDY, group="g", max_running=2))
    backend.abort("g#4")
    ended = []
    while backend.has_unfinished_requests():
        most = max(most, len(backend._running))  # type: ignore[attr-defined]
        ended += [output.request_id for output in backend.step() if output.finish_reason]
    assert (sorted(ended), most) == (["g#0", "g#1", "g#2", "g#3"], 2)


def test_a_step_without_news_returns_soon_and_at_once_when_woken(pair: Pair) -> None:
    backend = pair.vllm.backend
    assert backend.step() == []
    backend.add_request(request("slow", PROMPTS[2], GREEDY.replace(max_tokens=200)))
    threading.Timer(0.01, backend.wake).start()
    for _ in range(10_000):  # a hang here ends in the timeout
        if not backend.has_unfinished_requests():
            break
        backend.step()
        stats = backend.stats()
        assert stats.num_running + stats.num_waiting <= 1
    assert backend.stats().kv_pages_total > 0


def test_a_known_prompt_comes_from_the_cache(pair: Pair) -> None:
    ids = [60 + n % 30 for n in range(200)]
    first = outputs_of(pair.vllm, [request("a", ids, GREEDY)])["a"]
    again = outputs_of(pair.vllm, [request("b", ids, GREEDY)])["b"]
    salted = outputs_of(pair.vllm, [request("c", ids, GREEDY, cache_salt="s")])["c"]
    assert [parts[0].num_cached_tokens > 100 for parts in (first, again, salted)] == [False, True, False]
    assert tokens_of(first) == tokens_of(again) == tokens_of(salted)
    assert pair.vllm.stats().prefix_cache_hits > 0


def test_what_it_says_of_itself(pair: Pair) -> None:
    info = pair.vllm.info
    assert (info.name, info.vocab_size, info.max_model_len, info.max_num_seqs) == ("vllm", VOCAB_SIZE, CONTEXT, 8)
    assert Capability.COMPILED_GRAMMARS in info.capabilities
    with pytest.raises(InvalidRequestError, match="embeddings"):
        pair.vllm.embed("abc")
    with pytest.raises(InvalidRequestError, match="max_adapters"):
        pair.vllm.load_adapter("a", "/nowhere")


# Adapters, on the -hf layout


def test_greedy_on_the_hf_layout(hf: Pair) -> None:
    check_greedy(hf)


def test_adapters_are_mixed_in_a_batch_as_in_the_local_engine(hf: Pair, tmp_path: Path) -> None:
    config = config_of(hf)
    for n in (1, 2):
        folder = write_adapter(tmp_path / f"a{n}", factors(config, n, scale=0.05), settings())
        for llm in (hf.vllm, hf.local):
            info = llm.load_adapter(f"a{n}", str(folder))
            assert (info.name, info.rank) == (f"a{n}", 4)
        shutil.rmtree(folder)  # it is read once
    requests = [request(f"r{n}", PROMPTS[n % 2], GREEDY, adapter=(None, "a1", "a2")[n % 3]) for n in range(6)]
    found, wanted = outputs_of(hf.vllm, requests), outputs_of(hf.local, requests)
    texts = {name: tokens_of(parts) for name, parts in found.items()}
    assert texts == {name: tokens_of(parts) for name, parts in wanted.items()}
    assert len({tuple(text) for text in texts.values()}) == 6
    with pytest.raises(InvalidRequestError, match="as many as may be"):
        hf.vllm.load_adapter("a3", str(tmp_path / "a1"))
    hf.vllm.backend.add_request(request("last", PROMPTS[0], GREEDY, adapter="a1"))
    hf.vllm.unload_adapter("a1")
    assert [info.name for info in hf.vllm.adapters()] == ["a2"]
    with pytest.raises(InvalidRequestError) as caught:
        hf.vllm.backend.add_request(request("more", PROMPTS[0], GREEDY, adapter="a1"))
    assert caught.value.param == "model"
    assert tokens_of(outputs_of(hf.vllm, [])["last"]) == texts["r4"]
    # The name may come again, with other weights, and gets no cached keys of the first one.
    folder = write_adapter(tmp_path / "b", factors(config, 9, scale=0.05), settings())
    for llm in (hf.vllm, hf.local):
        if llm is hf.local:
            llm.unload_adapter("a1")
        llm.load_adapter("a1", str(folder))
    assert ids_of(hf.vllm, GREEDY, PROMPTS[2], adapter="a1") == ids_of(hf.local, GREEDY, PROMPTS[2], adapter="a1")
    for name in ("a1", "a2"):
        hf.vllm.unload_adapter(name)
        hf.local.unload_adapter(name)


def test_an_adapter_that_cannot_be_used_is_refused_and_the_engine_lives_on(hf: Pair, tmp_path: Path) -> None:
    config = config_of(hf)
    wide = write_adapter(tmp_path / "wide", factors(config, 1, rank=16), settings(r=16))
    dora = write_adapter(tmp_path / "dora", factors(config, 1), settings(use_dora=True))
    for path, error, match in (
        (tmp_path / "nothing", CheckpointError, "no adapter at"),
        (wide, UnsupportedModelError, "max_lora_rank"),
        (dora, UnsupportedModelError, "use_dora"),
    ):
        with pytest.raises(error, match=match) as caught:
            hf.vllm.load_adapter("x", str(path))
        assert str(path) in str(caught.value)
    assert hf.vllm.adapters() == []
    check_greedy(hf)


def config_of(pair: Pair) -> Any:
    return pair.local.backend.model.config  # type: ignore[attr-defined]


# GLM-4-0414; and the end


def test_greedy_of_0414_then_an_engine_that_dies_then_closing(tmp_path: Path) -> None:
    with both(tmp_path, "glm4") as pair:
        check_greedy(pair)
        backend = pair.vllm.backend
        processes = backend._engine.engine_core.resources.engine_manager.processes  # type: ignore[attr-defined]
        for process in processes:
            os.kill(process.pid, signal.SIGINT)  # as Ctrl-C at a terminal, which ends an answer
        check_greedy(pair)
        backend.add_request(request("victim", PROMPTS[0], GREEDY.replace(max_tokens=400)))
        for process in processes:
            process.kill()
        with pytest.raises(Glm4Error, match="Load the model again"):
            outputs_of(pair.vllm, [])
        with pytest.raises(Glm4Error, match="Load the model again"):
            backend.add_request(request("next", PROMPTS[0], GREEDY))
    with pytest.raises(ModelClosedError):
        backend.add_request(request("next", PROMPTS[0], GREEDY))
    backend.abort("victim")
    backend.close()
