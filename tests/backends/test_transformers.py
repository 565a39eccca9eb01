"""The transformers backend on the CPU: in float32 every request gets what the local backend gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, settings, write_adapter
from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.errors import PromptTooLongError
from glm4.logprobs import TokenLogprobs
from glm4.model.config import ModelConfig
from glm4.outputs import RequestOutput
from golden_models import Tensors
from prefix_files import write_prefix
from tiny import special_id, tiny_model, write_folder, write_gguf

pytestmark = pytest.mark.backends

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
MODELS = ("glm", "chatglm", "chatglm half-split", "glm4", "qwen2 gguf", "llama gguf", "chatglm gguf")
CHAT = [{"role": "user", "content": "hello"}]


def write_model(name: str, folder: Path) -> Path:
    if name.endswith("gguf"):
        architecture: Any = name.split()[0]
        return write_gguf(folder / "model.gguf", architecture)
    if name.startswith("chatglm"):
        return write_folder(folder, tiny_model("chatglm", half_split="half" in name))
    return write_folder(folder, tiny_model(architecture=name))


def open_both(path: Path) -> tuple[LLM, LLM]:
    options: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 6, "max_num_batched_tokens": 64, "num_threads": 1}
    return LLM(str(path), dtype="fp32", **options), LLM(str(path), backend="transformers", device="cpu", **options)


@pytest.fixture(scope="module", params=MODELS)
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    local, other = open_both(write_model(request.param, tmp_path_factory.mktemp("model")))
    with local, other:
        yield local, other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[tuple[LLM, LLM]]:
    local, other = open_both(folder)
    with local, other:
        yield local, other


def prompts(*lengths: int) -> list[list[int]]:
    """Random bytes."""
    rng = np.random.RandomState(5)
    return [rng.randint(0, 256, length).tolist() for length in lengths]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    assert all(output.error is None for output in outputs)
    return [[sample.token_ids for sample in output.outputs] for output in outputs]


def finish(llm: LLM) -> dict[str, list[int]]:
    """Tokens of all requests that are left."""
    found = {}
    while llm.has_unfinished_requests():
        for chunk in llm.step():
            if chunk.output is not None:
                assert chunk.output.error is None
                found[chunk.request_id] = chunk.output.outputs[0].token_ids
    return found


# Every layout of checkpoints


@pytest.mark.parametrize("seed", [None, 3])
def test_tokens_are_those_of_the_local_backend(every: tuple[LLM, LLM], seed: int | None) -> None:
    """Greedy and drawn, from prompts of unequal length in one batch, of which one is computed in five parts."""
    params = GREEDY if seed is None else GREEDY.replace(temperature=1.0, seed=seed)
    local, other = (tokens(llm.generate(prompts(10, 300, 45, 1), params)) for llm in every)
    assert other == local
    assert len({tuple(sample) for output in other for sample in output}) == 4


# Options of requests


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.2, "frequency_penalty": 0.7},
        {"temperature": 1.3, "seed": 1, "min_p": 0.02},
        {"temperature": 0.8, "seed": 2, "top_k": 7, "top_p": 0.8},
        {"temperature": 1.0, "seed": 4, "n": 4},
        {"temperature": 5.0, "seed": 5, "max_tokens": 200},
        {"logit_bias": {65: 100.0}, "stop_token_ids": [65], "min_tokens": 6},
        {"temperature": 1.0, "seed": 6, "ignore_eos": False, "logit_bias": {special_id("<|user|>"): 8.0}},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_mean_what_they_mean_locally(both: tuple[LLM, LLM], options: dict[str, Any]) -> None:
    params = GREEDY.replace(**options)
    local, other = (llm.generate(prompts(9, 80), params) for llm in both)
    assert tokens(other) == tokens(local)
    for mine, theirs in zip(other, local, strict=True):
        for sample, reference in zip(mine.outputs, theirs.outputs, strict=True):
            assert (sample.finish_reason, sample.stop_reason) == (reference.finish_reason, reference.stop_reason)
    assert max(token for output in tokens(other) for sample in output for token in sample) < 256 + 20


def scores(output: RequestOutput) -> list[TokenLogprobs]:
    """Of the prompt and of what follows."""
    found = [*(output.prompt_logprobs or ()), *(output.outputs[0].logprobs or ())]
    assert [one is None for one in found] == [True] + [False] * (len(found) - 1)
    return [one for one in found if one is not None]


def test_log_probabilities_are_the_local_ones(both: tuple[LLM, LLM]) -> None:
    params = GREEDY.replace(logprobs=3, prompt_logprobs=2)
    local, other = (llm.generate(prompts(200, 7), params) for llm in both)
    assert tokens(other) == tokens(local)
    for mine, theirs in zip(other, local, strict=True):
        found, expected = scores(mine), scores(theirs)
        assert len(found) == len(mine.prompt_token_ids) - 1 + 24
        for one, reference in zip(found, expected, strict=True):
            assert (one.token_id, one.rank) == (reference.token_id, reference.rank)
            assert [token for token, _ in one.top] == [token for token, _ in reference.top]
            values, wanted = ([score.logprob, *(value for _, value in score.top)] for score in (one, reference))
            np.testing.assert_allclose(values, wanted, atol=1e-4)


def test_embeddings_are_the_local_ones(both: tuple[LLM, LLM]) -> None:
    local, other = ([one.embedding for one in llm.embed(prompts(5, 300))] for llm in both)
    np.testing.assert_allclose(other, local, atol=1e-5)


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": "(yes|no): the answer is (one|two) hundred and [0-9]{2}"},
        {"choice": ["Beijing", "Bremen"]},
        {
            "json": {
                "type": "object",
                "properties": {"height": {"enum": [1, 2]}, "width": {"enum": [3, 4]}},
                "required": ["height", "width"],
                "additionalProperties": False,
            }
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"prompt_logprobs": 1}], ids=str)
def test_answers_that_follow_a_grammar(both: tuple[LLM, LLM], outputs: dict[str, Any], more: dict[str, Any]) -> None:
    """Beside one that does not. Long runs of forced ids leave the batch and come back."""
    params = SamplingParams(seed=1, max_tokens=120, structured_outputs=StructuredOutputs(**outputs), **more)
    local, other = (llm.chat([CHAT, CHAT, CHAT], [params, GREEDY, params.replace(seed=2)]) for llm in both)
    assert tokens(other) == tokens(local)
    assert [one.outputs[0].text for one in other] == [one.outputs[0].text for one in local]
    assert other[0].outputs[0].finish_reason == "stop"


def test_three_lines_and_a_call_of_a_tool(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, chat_template=None)  # the dialect's own has a place for tools
    llm = LLM(str(folder), backend="transformers", device="cpu")
    answer = llm.chat(CHAT, SamplingParams(max_tokens=20))[0].outputs[0]
    assert answer.token_ids
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Beijing"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": schema}}
    params = SamplingParams(max_tokens=100, seed=1)
    chunks = list(llm.stream_chat(CHAT, params, tools=[tool], tool_choice="required", parallel_tool_calls=False))
    output = chunks[-1].output
    assert output is not None
    (call,) = output.outputs[0].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Beijing"})
    assert any(event for chunk in chunks for event in chunk.events)
    llm.close()


# Batches


def test_who_joins_or_leaves_changes_nobody_else(both: tuple[LLM, LLM]) -> None:
    _, llm = both
    given = prompts(40, 7, 150, 33, 12)
    lengths = [30, 3, 12, 40, 20]
    alone = [tokens(llm.generate([p], GREEDY.replace(max_tokens=n)))[0][0] for p, n in zip(given, lengths, strict=True)]
    for number, (prompt, length) in enumerate(zip(given, lengths, strict=True)):
        llm.add(str(number), llm.prepare_prompt(prompt, GREEDY.replace(max_tokens=length)))
        for _ in range(3):
            llm.step()
    llm.add("dropped", llm.prepare_prompt(given[0], GREEDY))
    llm.step()
    llm.abort("dropped")
    found = finish(llm)
    # Number 1 ended while others joined.
    assert found == {str(number): alone[number] for number in (0, 2, 3, 4)}


def test_a_long_prompt_can_be_aborted_between_its_parts(both: tuple[LLM, LLM]) -> None:
    _, llm = both
    long, short = prompts(300, 8)
    llm.add("long", llm.prepare_prompt(long, GREEDY))
    assert [llm.step() for _ in range(2)] == [[], []]
    assert llm.stats().num_running == 1
    assert llm.stats().kv_pages_used == 128
    llm.abort("long")
    assert llm.stats().num_running == llm.stats().kv_pages_used == 0
    assert not llm.has_unfinished_requests()
    assert tokens(llm.generate([short], GREEDY))


def test_a_short_prompt_does_not_wait_for_a_long_one(both: tuple[LLM, LLM]) -> None:
    _, llm = both
    long, short = prompts(400, 8)
    llm.add("long", llm.prepare_prompt(long, GREEDY))
    llm.add("short", llm.prepare_prompt(short, GREEDY))
    assert [chunk.request_id for chunk in llm.step()] == ["short"]
    assert set(finish(llm)) == {"long", "short"}


def test_samples_of_a_group_run_at_most_as_many_at_once_as_it_says(both: tuple[LLM, LLM]) -> None:
    _, llm = both
    request = llm.prepare_prompt(prompts(8)[0], GREEDY).sample("x", frozenset(), 0)
    backend = llm.backend
    for number in range(3):
        backend.add_request(replace(request, request_id=str(number), group="g", max_running=1))
    backend.add_request(replace(request, request_id="other"))
    running = set()
    while backend.has_unfinished_requests():
        backend.step()
        running.add(backend.stats().num_running)
    assert max(running) == 2


def test_what_does_not_fit_the_cache_is_computed_again(folder: Path, both: tuple[LLM, LLM]) -> None:
    local, _ = both
    params = GREEDY.replace(max_tokens=60)
    given = prompts(50, 50, 50, 50)
    nbytes = 4 * 2 * 2 * 32  # of a token: float32 keys and values of two layers
    with LLM(
        str(folder), backend="transformers", device="cpu", max_model_len=128, kv_cache_memory=256 * nbytes
    ) as small:
        assert small.info.execution is not None
        assert small.info.execution.kv_cache_tokens == 256
        assert tokens(small.generate(given, params)) == tokens(local.generate(given, params))
        assert small.stats().num_preemptions > 0


# Adapters


def chatglm_factors(config: ModelConfig, seed: int) -> Tensors:
    """Random factors under the names of the original layout."""
    rng = np.random.default_rng(seed)
    hidden, ffn = config.hidden_size, config.intermediate_size
    shapes = {
        "self_attention.query_key_value": (config.query_size + 2 * config.key_value_size, hidden),
        "self_attention.dense": (hidden, config.query_size),
        "mlp.dense_h_to_4h": (2 * ffn, hidden),
        "mlp.dense_4h_to_h": (hidden, ffn),
    }
    tensors: Tensors = {}
    for layer in range(config.num_hidden_layers):
        for module, (rows, columns) in shapes.items():
            stem = f"base_model.model.transformer.encoder.layers.{layer}.{module}.lora_"
            tensors[stem + "A.weight"] = (0.3 * rng.standard_normal((4, columns))).astype(np.float32)
            tensors[stem + "B.weight"] = (0.3 * rng.standard_normal((rows, 4))).astype(np.float32)
    return tensors


def write_adapters(model: str, path: Path, folder: Path) -> dict[str, Path]:
    """Adapters in the layouts that fit the model."""
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
    targets = ("q_proj", "k_proj", "o_proj")
    made = {"some": write_adapter(folder / "some", factors(config, 1, targets), settings(targets))}
    if not model.endswith("half-split"):  # refused for it
        made |= {f"prefix {count}": write_prefix(folder / f"prefix-{count}", config, count) for count in (5, 40)}
    if model.split()[0] in ("glm", "chatglm", "glm4"):
        made["all"] = write_adapter(folder / "all", factors(config, 2))
    if model.startswith("chatglm"):
        names = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
        made["original"] = write_adapter(folder / "original", chatglm_factors(config, 3), settings(names))
    return made


@pytest.mark.parametrize("model", MODELS)
def test_adapters_of_each_layout_mixed_in_a_batch(model: str, tmp_path: Path) -> None:
    path = write_model(model, tmp_path)
    names = write_adapters(model, path, tmp_path)
    found = []
    local, other = open_both(path)
    with local, other:
        for llm in (local, other):
            for name, adapter in names.items():
                info = llm.load_adapter(name, str(adapter))
                given = ("prefix", 0, int(name.split()[1])) if name.startswith("prefix") else ("lora", 4, 0)
                assert (info.kind, info.rank, info.num_virtual_tokens) == given
            for number, used in enumerate([None, *names, None, *names]):
                llm.add(f"{number}", llm.prepare_prompt(prompts(10 + 40 * number)[0], GREEDY, adapter=used))
            found.append(finish(llm))
        assert [one.name for one in other.adapters()] == list(names)
    assert found[1] == found[0]


def test_what_a_prompt_gives_behind_a_prefix(folder: Path, tmp_path: Path) -> None:
    """In parts, with log-probabilities, as an embedding, in a context that virtual tokens take a part of, and again."""
    prefix = str(write_adapters("glm", folder, tmp_path)["prefix 40"])
    nbytes = 4 * 2 * 2 * 32
    options = {"max_model_len": 192, "max_num_batched_tokens": 16, "kv_cache_memory": 384 * nbytes}
    given: list[Any] = prompts(50, 50, 50, 50)
    found: list[tuple[Any, Any, Any]] = []
    for backend in ("local", "transformers"):
        more = options if backend == "transformers" else {"max_model_len": 192}
        with LLM(str(folder), backend=backend, dtype="fp32", **more) as llm:  # type: ignore[arg-type]
            llm.load_adapter("it", prefix)
            answers = tokens(llm.generate(given, GREEDY.replace(max_tokens=60), adapter="it"))
            (scored,) = llm.generate([given[0]], GREEDY.replace(prompt_logprobs=0, max_tokens=1), adapter="it")
            assert scored.prompt_logprobs is not None
            assert scored.prompt_logprobs[0] is None
            logprobs = [one.logprob for one in scored.prompt_logprobs if one is not None]
            assert len(logprobs) == 49
            (embedded,) = llm.embed([given[0]], adapter="it")
            assert len(scored.prompt_token_ids) == embedded.prompt_tokens == 50
            (full,) = llm.generate([given[0]], GREEDY.replace(max_tokens=None), adapter="it")
            assert len(full.outputs[0].token_ids) == 192 - 40 - 50
            with pytest.raises(PromptTooLongError, match="152 beside the 40 virtual tokens"):
                llm.generate([[65] * 152], GREEDY, adapter="it")
            found.append((answers, logprobs, embedded.embedding))
            assert llm.stats().num_preemptions > 0 or backend == "local"
    (answers, logprobs, vector), (wanted, expected, direction) = found[1], found[0]
    assert answers == wanted
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(vector, direction, rtol=0, atol=1e-5)


def test_an_adapter_that_is_unloaded_serves_who_uses_it(both: tuple[LLM, LLM], folder: Path, tmp_path: Path) -> None:
    _, llm = both
    adapter = str(write_adapters("glm", folder, tmp_path)["all"])
    prompt = prompts(10)[0]
    plain = tokens(llm.generate([prompt], GREEDY))[0][0]
    llm.load_adapter("mine", adapter)
    expected = tokens(llm.generate([prompt], GREEDY, adapter="mine"))[0][0]
    assert expected != plain
    llm.add("runs", llm.prepare_prompt(prompt, GREEDY, adapter="mine"))
    llm.step()
    assert llm.stats().running_adapters == ("mine",)
    llm.unload_adapter("mine")
    assert finish(llm) == {"runs": expected}
    assert llm.adapters() == []
