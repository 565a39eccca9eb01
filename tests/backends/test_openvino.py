"""The openvino backend: what its runtime computes is what our engine computes, and what it cannot do is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, write_adapter
from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.errors import CheckpointError, InvalidRequestError, ModelClosedError, OutOfMemoryError, PromptTooLongError
from glm4.llm import LLM
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams
from tiny import tiny_model, write_folder

pytestmark = pytest.mark.backends

LENGTH = 512
MODELS = {
    "chatglm": tiny_model("chatglm", rope_theta=5e6),
    "glm": tiny_model(rope_theta=5e6),
    "glm4": tiny_model(architecture="glm4"),
}
SHORT, LONG = [97, 98, 99], [n * 7 % 250 for n in range(300)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=["chatglm", "glm", "glm4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    """A model in our engine in float32, and its export."""
    from openvino_models import export

    folder = tmp_path_factory.mktemp("openvino")
    source = write_folder(folder / "m", MODELS[request.param])
    export(source, folder / "out")
    with LLM(str(source), dtype="fp32", max_model_len=LENGTH) as local, opened(folder / "out") as exported:
        yield local, exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from openvino_models import export

    folder = tmp_path_factory.mktemp("openvino")
    export(write_folder(folder / "m", MODELS["glm"]), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with opened(folder) as made:
        yield made


def opened(folder: Path, **options: Any) -> LLM:
    chosen: dict[str, Any] = {"compute_precision": "f32", "max_model_len": LENGTH, "kv_cache_memory": 64 << 20}
    return LLM(str(folder), backend="openvino", **(chosen | options))


def ids_of(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]


def finished(backend: Backend, *requests: GenerationRequest) -> dict[str, list[GenerationOutput]]:
    """All outputs, by request."""
    for request in requests:
        backend.add_request(request)
    outputs: dict[str, list[GenerationOutput]] = {}
    while backend.has_unfinished_requests():
        for output in backend.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def request(name: str, params: SamplingParams = GREEDY, prompt: list[int] = SHORT, **more: Any) -> GenerationRequest:
    return GenerationRequest(name, Prompt(prompt), params, **more)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    ],
)
def test_greedy_ids_are_those_of_our_engine(pair: tuple[LLM, LLM], changes: dict[str, float]) -> None:
    """A batch of prompts, one of them longer than a block of the cache."""
    local, exported = pair
    params, prompts = GREEDY.replace(**changes), [SHORT, LONG, list(range(100, 140))]
    assert ids_of(exported, prompts, params) == ids_of(local, prompts, params)


def test_a_request_may_join_late(pair: tuple[LLM, LLM]) -> None:
    local, exported = pair
    backend = exported.backend
    backend.add_request(request("first", prompt=LONG))
    found: dict[str, list[int]] = {"first": [], "late": []}
    for step in range(200):
        if step == 5:
            backend.add_request(request("late"))
        for output in backend.step():
            found[output.request_id] += output.token_ids
        if not backend.has_unfinished_requests() and step > 5:
            break
    assert [found["first"], found["late"]] == ids_of(local, [LONG, SHORT], GREEDY)


def test_min_p_and_top_k_leave_what_they_leave_here(llm: LLM) -> None:
    """At a high temperature only one token is left, the most likely."""
    greedy = ids_of(llm, [SHORT], GREEDY)
    for only_one in ({"top_k": 1}, {"min_p": 1.0}, {"min_p": 0.999999}, {"top_p": 0.0}, {"top_p": 1e-6}):
        assert ids_of(llm, [SHORT], GREEDY.replace(temperature=5.0, seed=1, **only_one)) == greedy


def test_an_answer_in_words_is_that_of_our_engine(pair: tuple[LLM, LLM]) -> None:
    local, exported = pair
    params = SamplingParams(temperature=0.0, max_tokens=24)
    messages = [{"role": "user", "content": "hello 北京"}]
    assert exported.chat(messages, params)[0].outputs[0].text == local.chat(messages, params)[0].outputs[0].text


def test_seeds_repeat_whatever_else_is_in_the_batch(llm: LLM) -> None:
    drawn = SamplingParams(temperature=2.0, seed=7, max_tokens=24, ignore_eos=True)
    alone = finished(llm.backend, request("a", drawn))
    both = finished(llm.backend, request("b", drawn, LONG), request("a", drawn), request("c", drawn, sample_index=1))

    def ids(parts: list[GenerationOutput]) -> list[int]:
        return [token for part in parts for token in part.token_ids]

    assert ids(both["a"]) == ids(alone["a"]) != ids(both["c"])
    unseeded = SamplingParams(temperature=2.0, max_tokens=24, ignore_eos=True)
    assert len({tuple(row) for row in ids_of(llm, [SHORT] * 4, unseeded)}) == 4


def test_ids_that_stop_are_the_last_ones(llm: LLM) -> None:
    plain = ids_of(llm, [SHORT], GREEDY)[0]
    stop = next(token for token in plain if token not in plain[:3])
    upto = plain[: plain.index(stop) + 1]
    for own, params in (
        ({stop}, GREEDY.replace(ignore_eos=False)),
        (set(), GREEDY.replace(stop_token_ids=[stop])),  # although ignore_eos is set
    ):
        outputs = finished(llm.backend, request("r", params, stop_ids=frozenset(own)))["r"]
        assert [token for part in outputs for token in part.token_ids] == upto
        assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == ("stop", stop)
    ignored = finished(llm.backend, request("r", stop_ids=frozenset({stop})))["r"]
    assert (len(ignored), ignored[-1].finish_reason, ignored[-1].stop_token_id) == (24, "length", None)
    later = finished(llm.backend, request("r", GREEDY.replace(stop_token_ids=[stop], min_tokens=len(upto) + 4)))["r"]
    assert stop not in [token for part in later[: len(upto) + 4] for token in part.token_ids]


def test_rows_without_a_token_are_never_sampled(llm: LLM) -> None:
    hot = SamplingParams(temperature=50.0, max_tokens=400, ignore_eos=True, seed=0)
    drawn = np.array(ids_of(llm, [SHORT] * 8, hot))
    banned = llm.tokenizer.unnamed_ids(llm.info.vocab_size)
    assert len(banned) > 10
    assert drawn.size == 3200
    assert not np.isin(drawn, banned).any()


def test_nothing_follows_an_abort(llm: LLM) -> None:
    backend = llm.backend
    backend.add_request(request("dropped", GREEDY.replace(max_tokens=400)))
    backend.step()
    backend.abort("dropped")
    backend.abort("unknown")
    assert not backend.has_unfinished_requests()
    assert list(finished(backend, request("kept"), request("dropped2"))) == ["kept", "dropped2"]
    assert backend.stats().num_running == backend.stats().num_waiting == 0


def test_more_requests_than_run_at_once_wait(folder: Path) -> None:
    with opened(folder, max_num_seqs=2) as llm:
        for number in range(5):
            llm.backend.add_request(request(str(number)))
        llm.backend.step()
        assert (llm.backend.stats().num_running, llm.backend.stats().num_waiting) == (2, 3)
        assert sorted(finished(llm.backend)) == list("01234")


def test_the_context_ends_an_answer(llm: LLM) -> None:
    end = SamplingParams(temperature=0.0, ignore_eos=True)
    assert len(ids_of(llm, [LONG], end)[0]) == LENGTH - len(LONG)


@pytest.mark.parametrize(
    ("bad", "error", "param"),
    [
        (request("bad", prompt=[97] * LENGTH), PromptTooLongError, "prompt"),
        (request("bad", prompt=[288]), InvalidRequestError, "prompt"),
        (request("bad", prompt=[-1]), InvalidRequestError, "prompt"),
        (request("bad", adapter="nobody"), InvalidRequestError, "model"),
        (request("good"), InvalidRequestError, "request_id"),
    ],
)
def test_a_request_that_cannot_run_is_refused_at_once(
    llm: LLM, bad: GenerationRequest, error: type[InvalidRequestError], param: str
) -> None:
    llm.backend.add_request(request("good"))
    with pytest.raises(error) as caught:
        llm.backend.add_request(bad)
    assert caught.value.param == param
    assert list(finished(llm.backend)) == ["good"]


@pytest.mark.parametrize(
    "changes",
    [{"logprobs": 0}, {"prompt_logprobs": 1}, {"logit_bias": {97: 5.0}}],
)
def test_what_the_runtime_lacks_is_refused_by_name(llm: LLM, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(changes))):
        llm.generate([SHORT], GREEDY.replace(**changes))


def test_salts_need_a_cache_that_is_not_shared(folder: Path) -> None:
    with opened(folder) as llm:
        assert list(finished(llm.backend, request("salted", cache_salt="mine"))) == ["salted"]
    with opened(folder, enable_prefix_caching=True) as llm:
        with pytest.raises(InvalidRequestError, match="without enable_prefix_caching"):
            llm.backend.add_request(request("salted", cache_salt="mine"))
        assert list(finished(llm.backend, request("plain"))) == ["plain"]


def test_a_model_that_is_not_an_export_is_refused_with_the_command(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"glm4 export .*m --to openvino -o"):
        opened(folder.parent / "m")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"device": "NPU"}, InvalidRequestError, "LLMPipeline"),
        ({"device": "GPU.7"}, InvalidRequestError, "finds no device GPU.7 here; it finds CPU"),
        ({"max_model_len": 10000}, InvalidRequestError, "at most 8192"),
        ({"kv_cache_memory": 100_000}, OutOfMemoryError, "raise kv_cache_memory"),
        ({"ov_config": {"NO_SUCH_PROPERTY": 1}}, CheckpointError, "NO_SUCH_PROPERTY"),
        ({"compute_precision": "int8"}, InvalidRequestError, "compute_precision"),
        ({"max_num_seqs": 0}, InvalidRequestError, "max_num_seqs"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    folder: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        opened(folder, **options)


def test_a_small_cache_limits_the_context(folder: Path) -> None:
    with opened(folder, max_model_len=None, kv_cache_memory=100_000) as llm:
        assert llm.info.max_model_len == 192
        assert len(ids_of(llm, [SHORT] * 3, SamplingParams(temperature=0.0, ignore_eos=True))[2]) == 189


def test_a_closed_backend_says_so(folder: Path) -> None:
    llm = opened(folder)
    backend = llm.backend
    backend.add_request(request("running"))
    backend.step()
    llm.close()
    backend.close()
    assert not backend.has_unfinished_requests()
    backend.abort("running")
    backend.wake()
    with pytest.raises(ModelClosedError):
        backend.step()


@pytest.mark.parametrize("name", ["glm", "glm4"])
@pytest.mark.parametrize("attention", ["PA", "SDPA"])
def test_adapters_find_their_matrices(name: str, attention: str, tmp_path: Path) -> None:
    """Through openvino-genai itself: the backend has none."""
    import openvino as ov
    import openvino_genai as genai

    from openvino_models import EXACT, export

    source, out = write_folder(tmp_path / "m", MODELS[name]), tmp_path / "out"
    export(source, out)
    with LLM(str(source), dtype="fp32", max_model_len=LENGTH) as local:
        write_adapter(tmp_path / "a", factors(local.checkpoint.config, seed=1))  # type: ignore[union-attr]
        local.load_adapter("a", str(tmp_path / "a"))
        plain = ids_of(local, [SHORT], GREEDY)
        tuned = [list(local.generate([SHORT], GREEDY, adapter="a")[0].outputs[0].token_ids)]
    adapter = genai.AdapterConfig(genai.Adapter(tmp_path / "a" / "adapter_model.safetensors"), 8 / 4)
    pipeline = genai.LLMPipeline(out, "CPU", adapters=adapter, ATTENTION_BACKEND=attention, **EXACT)
    config = genai.GenerationConfig(apply_chat_template=False, eos_token_id=-1, max_new_tokens=24)
    for adapters, wanted in ((adapter, tuned), (genai.AdapterConfig(), plain)):
        config.adapters = adapters
        assert pipeline.generate(ov.Tensor(np.array([SHORT], np.int64)), config).tokens == wanted
    assert plain != tuned
