"""The `remote` backend against our own server, on a real socket: what comes back is what the local backend says."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_routes import GENERATE, ROUTES, over

from adapter_files import factors, write_adapter
from glm4 import LLM, AsyncLLM, SamplingParams, StructuredOutputs
from glm4.backends.remote import RemoteOptions, backend
from glm4.chat.events import TextDelta, ToolCallDelta
from glm4.errors import InvalidRequestError, ModelNotFoundError, PromptTooLongError, RemoteError
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from stepped import stepped, until
from tiny import special_id, write_folder

KEY = "a-key-for-tests"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
CHATS = [[{"role": "user", "content": text}] for text in ("hello", "你好", "a longer question about nothing")]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "北京"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), chat_template=None)


@pytest.fixture(scope="module")
def text_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without its weights."""
    copy = tmp_path_factory.mktemp("text")
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="fp32", max_model_len=2048, max_num_seqs=4) as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = LLM(str(folder), dtype="fp32", max_model_len=2048, max_num_seqs=4)
    for seed, name in enumerate(("poems", "letters"), 1):
        path = tmp_path_factory.mktemp(name)
        llm.load_adapter(name, str(write_adapter(path, factors(llm.backend.model.config, seed))))  # type: ignore[attr-defined]
    with serve(config("tiny", "alias", api_keys=(KEY,)), llm) as running:
        yield running


@pytest.fixture(scope="module", params=ROUTES)
def remote(request: pytest.FixtureRequest, server: LiveServer, text_only: Path) -> Iterator[LLM]:
    with over(request.param):
        made = LLM(str(text_only), backend="remote", base_url=f"{server.url}/v1/", api_key=KEY)
    with made:
        assert made.backend._endpoint.path == request.param  # type: ignore[attr-defined]
        yield made


def ids(llm: LLM, prompt: str, params: SamplingParams, **options: Any) -> list[list[int]]:
    (output,) = llm.generate(prompt, params, **options)
    return [sample.token_ids for sample in output.outputs]


# The same answers


def test_requests_go_to_the_token_route_where_there_is_one(
    remote: LLM, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    route = request.node.callspec.params["remote"]
    with caplog.at_level("INFO", logger="glm4.access"):
        remote.generate(["abc", "def"], GREEDY)
        # The line of the question at the opening, which some servers refuse, may come only now.
        until(lambda: sum(route in message for message in caplog.messages) >= 2, "both are logged")
    assert {message.split()[1] for message in caplog.messages if " 200 " in message} == {route}


def test_limits_are_the_servers(remote: LLM, local: LLM) -> None:
    assert (remote.info.name, remote.info.max_model_len) == ("remote", 2048)
    assert remote.info.vocab_size == local.info.vocab_size
    assert remote.checkpoint is None
    assert remote.default_sampling_params() == local.default_sampling_params()


def test_greedy_answers_are_the_local_backends(remote: LLM, local: LLM) -> None:
    for far, near in zip(remote.chat(CHATS, GREEDY), local.chat(CHATS, GREEDY), strict=True):
        assert far.prompt_token_ids == near.prompt_token_ids
        assert far.outputs[0].token_ids == near.outputs[0].token_ids
        assert (far.outputs[0].text, far.outputs[0].finish_reason) == (near.outputs[0].text, "length")
        assert far.metrics.num_generated_tokens == 12


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=9, max_tokens=10, ignore_eos=True),
        SamplingParams(seed=-(1 << 62) + 5, max_tokens=10, ignore_eos=True, temperature=3.0, top_k=40, top_p=0.9),
        SamplingParams(seed=4, max_tokens=10, ignore_eos=True, min_p=0.02, repetition_penalty=1.3),
        SamplingParams(temperature=0.0, max_tokens=10, presence_penalty=1.5, frequency_penalty=-0.5, ignore_eos=True),
        SamplingParams(temperature=0.0, max_tokens=6, logit_bias={120: 100.0}, ignore_eos=True),
        SamplingParams(temperature=0.0, min_tokens=3, max_tokens=6, logit_bias={special_id("<|user|>"): 100.0}),
    ],
)
def test_sampling_options_mean_what_they_mean_here(remote: LLM, local: LLM, params: SamplingParams) -> None:
    assert ids(remote, "abc", params) == ids(local, "abc", params)


def test_samples_differ_and_a_seed_repeats_them(remote: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    first = ids(remote, "abc", params)
    assert len({tuple(sample) for sample in first}) == 3
    assert ids(remote, "abc", params) == first


def test_rows_without_a_token_are_never_sampled(remote: LLM) -> None:
    unnamed = set(remote.tokenizer.unnamed_ids(remote.info.vocab_size).tolist())
    (sample,) = ids(remote, "abc", SamplingParams(temperature=50.0, seed=1, max_tokens=200, ignore_eos=True))
    assert unnamed
    assert not unnamed & set(sample)


def test_the_models_own_stop_ids_end_the_turn(remote: LLM, local: LLM) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={special_id("<|observation|>"): 100.0})
    far, near = (llm.chat(CHATS[0], params)[0].outputs[0] for llm in (remote, local))
    assert far.token_ids == near.token_ids == [special_id("<|observation|>")]
    assert (far.text, far.finish_reason, far.stop_reason) == ("", "stop", None)


def test_stop_ids_and_stop_strings_of_the_caller(remote: LLM, local: LLM) -> None:
    (whole,) = ids(local, "abc", GREEDY)
    params = GREEDY.replace(stop_token_ids=[whole[4]])
    far, near = (llm.generate("abc", params)[0].outputs[0] for llm in (remote, local))
    assert (far.token_ids, far.stop_reason) == (near.token_ids, near.stop_reason)
    assert far.finish_reason == "stop"
    text = SamplingParams(seed=2, max_tokens=60, stop="e", structured_outputs=StructuredOutputs(regex="[a-f]{50}"))
    far, near = (llm.generate("abc", text)[0].outputs[0] for llm in (remote, local))
    assert (far.text, far.stop_reason) == (near.text, "e")
    assert not remote.backend.has_unfinished_requests()


def test_logprobs_are_the_models_own(remote: LLM, local: LLM) -> None:
    params = GREEDY.replace(logprobs=3, temperature=5.0, seed=2, repetition_penalty=1.5)
    far, near = (llm.generate("abc", params)[0].outputs[0].logprobs for llm in (remote, local))
    assert far is not None
    assert near is not None
    assert [entry.token_id for entry in far] == [entry.token_id for entry in near]
    for theirs, ours in zip(far, near, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-5)
        assert [token for token, _ in theirs.top] == [token for token, _ in ours.top]
        by_id = remote.backend._endpoint.path == GENERATE  # type: ignore[attr-defined]
        assert theirs.rank == (ours.rank if by_id or ours.token_id in dict(ours.top) else None)
    (alone,) = remote.generate("abc", GREEDY.replace(logprobs=0))
    assert alone.outputs[0].logprobs is not None
    assert [entry.top for entry in alone.outputs[0].logprobs] == [()] * 12


def test_the_servers_prefix_cache_is_accounted_for(remote: LLM) -> None:
    prompt = "the same words again and again, " * 6
    remote.generate(prompt, GREEDY)
    (again,) = remote.generate(prompt, GREEDY)
    assert again.metrics.num_cached_tokens > 0


# Grammars, in words


@pytest.mark.parametrize(
    "outputs",
    [
        StructuredOutputs(json={"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}),
        StructuredOutputs(json_object=True),
        StructuredOutputs(choice=["yes", "no/maybe", '"quoted" \\ 北京']),
        StructuredOutputs(regex="(a/b|c\\\\d|\\/e){2}[0-9]"),
        StructuredOutputs(grammar='start: "x" tail "}"\ntail: /[01]{4}/\n'),
    ],
    ids=["json", "json_object", "choice", "regex", "grammar"],
)
def test_answers_have_the_form_the_local_backend_gives_them(
    remote: LLM, local: LLM, outputs: StructuredOutputs
) -> None:
    params = SamplingParams(seed=3, max_tokens=60, structured_outputs=outputs)
    for call in ("generate", "chat"):
        prompt: Any = "abc" if call == "generate" else CHATS[0]
        far, near = (getattr(llm, call)(prompt, params)[0].outputs[0] for llm in (remote, local))
        assert far.token_ids == near.token_ids
        assert (far.text, far.finish_reason) == (near.text, near.finish_reason)


def test_a_required_tool_is_called_with_arguments_that_fit(remote: LLM, local: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=80)
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    far, near = (llm.chat(CHATS[0], params, **options)[0].outputs[0] for llm in (remote, local))
    assert far.token_ids == near.token_ids[:-1], "without the stop id that ends a call"
    assert far.finish_reason == near.finish_reason == "tool_calls"
    (call,) = far.tool_calls
    assert (call.name, call.arguments) == (near.tool_calls[0].name, near.tool_calls[0].arguments)
    assert json.loads(call.arguments)["city"] in ("Paris", "北京")


def test_tools_and_a_form_together(remote: LLM, local: LLM) -> None:
    params = SamplingParams(seed=11, max_tokens=80, structured_outputs=StructuredOutputs(choice=["@answer", "none"]))
    far, near = (llm.chat(CHATS[0], params, tools=[WEATHER])[0].outputs[0] for llm in (remote, local))
    assert far.token_ids == near.token_ids


def test_a_grammar_the_server_refuses_is_that_requests_error(remote: LLM) -> None:
    broken = SamplingParams(max_tokens=5, structured_outputs=StructuredOutputs(grammar="start: nowhere"))
    with pytest.raises(InvalidRequestError, match="the remote server refuses the request"):
        remote.generate("abc", broken)
    assert ids(remote, "abc", GREEDY)


# What it cannot do


def test_what_is_missing_is_refused_by_name_before_anything_is_sent(remote: LLM, server: LiveServer) -> None:
    with pytest.raises(InvalidRequestError, match=r"remote backend has no prompt_logprobs.*\(local, ") as caught:
        remote.generate("abc", SamplingParams(prompt_logprobs=1))
    assert caught.value.param == "prompt_logprobs"
    with pytest.raises(InvalidRequestError, match="remote backend has no embeddings"):
        remote.embed("abc")
    with pytest.raises(PromptTooLongError):
        remote.generate("x" * 3000)
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        remote.generate("abc", GREEDY.replace(logit_bias={100_000: 1.0}))
    assert not remote.has_unfinished_requests()
    assert server.leftovers["running"] == 0


# Adapters


def test_adapters_of_the_server_by_name(remote: LLM, server: LiveServer) -> None:
    assert [adapter.name for adapter in remote.adapters()] == ["poems", "letters"]
    answers = [ids(remote, "abc", GREEDY, adapter=name) for name in (None, "poems", "letters")]
    assert answers == [ids(server.llm, "abc", GREEDY, adapter=name) for name in (None, "poems", "letters")]
    assert answers[0] != answers[1] != answers[2]
    with pytest.raises(InvalidRequestError, match="no adapter 'nobody'") as caught:
        remote.generate("abc", GREEDY, adapter="nobody")
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequestError, match="loaded there"):
        remote.load_adapter("mine", "/nowhere")


# Which model, which tokenizer


def test_the_right_key_is_needed_and_never_shown(server: LiveServer, folder: Path) -> None:
    with pytest.raises(RemoteError, match="GLM4_REMOTE_API_KEY") as caught:
        LLM(str(folder), backend="remote", base_url=server.url, api_key="quite-another-key")
    assert "quite-another-key" not in str(caught.value)
    assert "quite-another-key" not in repr(RemoteOptions(server.url, api_key="quite-another-key"))


def test_the_key_comes_from_the_environment(server: LiveServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_REMOTE_API_KEY", KEY)
    with LLM(str(folder), backend="remote", base_url=server.url) as llm:
        assert ids(llm, "abc", GREEDY)


def test_a_model_that_is_not_served_is_named_with_those_that_are(server: LiveServer, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'other'.*tiny"):
        LLM(str(folder), backend="remote", base_url=server.url, api_key=KEY, remote_model="other")


def test_of_several_models_the_one_called_like_ours_is_taken(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "second")
    specs = tuple(ModelSpec(name, (name,)) for name in ("first", "Second"))
    answers = {"first": "\nI am the first", "Second": "\nI am the second"}

    def load(spec: ModelSpec, progress: object) -> LLM:
        return scripted_llm(tmp_path / spec.source, lambda prompt: answers[spec.source])

    with serve(ServerConfig(specs), load=load) as server:
        with LLM(str(folder), backend="remote", base_url=server.url) as llm:
            assert llm.chat(CHATS[0])[0].outputs[0].text == "I am the second"
        with LLM(str(folder), backend="remote", base_url=server.url, remote_model="first") as llm:
            assert llm.chat(CHATS[0])[0].outputs[0].text == "I am the first"
        with pytest.raises(ModelNotFoundError, match="first, Second"):
            LLM(str(write_folder(tmp_path / "third")), backend="remote", base_url=server.url)


def test_another_tokenizer_is_refused(server: LiveServer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    file = folder / "tokenizer_config.json"
    settings = file.read_text().replace("<|user|>", "<|other|>").replace("<|assistant|>", "<|user|>")
    file.write_text(settings.replace("<|other|>", "<|assistant|>"))
    with pytest.raises(RemoteError, match=r"tokenizer of .* is not that of"):
        LLM(str(folder), backend="remote", base_url=server.url, api_key=KEY)


def test_a_longer_context_than_the_servers_is_refused(server: LiveServer, folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"4096 tokens .* exceeds the 2048"):
        LLM(str(folder), backend="remote", base_url=server.url, api_key=KEY, max_model_len=4096)
    with LLM(str(folder), backend="remote", base_url=server.url, api_key=KEY, max_model_len=100) as llm:
        assert llm.info.max_model_len == 100


# A whole conversation with tools, and the asynchronous twin


def test_our_parser_in_front_of_a_remote_server(tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        return "\nIt has 18 degrees." if "18" in prompt else 'get_weather\n{"city": "北京"}'

    folder = write_folder(tmp_path / "m", chat_template=None)
    with (
        serve(config("tiny"), scripted_llm(tmp_path / "far", script, dialect="glm4")) as server,
        LLM(str(folder), backend="remote", base_url=server.url) as llm,
    ):
        messages: list[Any] = list(CHATS[0])
        chunks = list(llm.stream_chat(messages, tools=[WEATHER]))
        events = [event for chunk in chunks for event in chunk.events]
        assert any(isinstance(event, ToolCallDelta) for event in events)
        assert not any(isinstance(event, TextDelta) and event.text for event in events)
        assert chunks[-1].output is not None
        answer = chunks[-1].output.outputs[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.tool_calls
        assert json.loads(call.arguments) == {"city": "北京"}
        messages += [answer.as_message(), {"role": "tool", "tool_call_id": call.id, "content": "18"}]
        assert llm.chat(messages, tools=[WEATHER])[0].outputs[0].text == "It has 18 degrees."


def test_async_answers_are_the_same(server: LiveServer, folder: Path, local: LLM) -> None:
    async def scenario() -> None:
        llm = await AsyncLLM.create(str(folder), backend="remote", base_url=server.url, api_key=KEY)
        outputs = await asyncio.gather(*(llm.chat(chat, GREEDY) for chat in CHATS))
        expected = [output.outputs[0].token_ids for output in local.chat(CHATS, GREEDY)]
        assert [output.outputs[0].token_ids for output in outputs] == expected
        await llm.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("route", ROUTES)
def test_an_abort_and_a_new_request_get_through_while_a_step_waits(
    folder: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far model stands still; nothing but hanging up can end the first request, and it frees the far pages."""
    monkeypatch.setattr(backend, "STEP_WAIT", 600.0)  # only `wake` ends a step that waits
    far = LLM(str(folder), dtype="fp32", max_model_len=256, max_num_seqs=4)
    with serve(config("tiny"), far) as server:

        async def scenario() -> None:
            with over(route):
                llm = await AsyncLLM.create(str(folder), backend="remote", base_url=server.url)
            steps = stepped(far)
            stream = await llm.submit(llm.llm.prepare_prompt("abc", SamplingParams(max_tokens=200, ignore_eos=True)))
            await asyncio.to_thread(until, lambda: steps.waits, "the far engine has it")
            stream.close()
            second = await llm.submit(llm.llm.prepare_prompt("abc", GREEDY))
            steps.allow(1)
            await asyncio.to_thread(until, lambda: server.leftovers["places"] == 1, "the first was hung up on")
            steps.open()
            assert len((await second.output()).outputs[0].token_ids) == 12
            await llm.close()

        asyncio.run(scenario())
        until(lambda: not any(server.leftovers.values()), "nothing is left there")
    until(lambda: not [one for one in threading.enumerate() if one.name == "glm4-remote"], "nothing is left here")


def test_many_requests_some_of_which_are_dropped(server: LiveServer, folder: Path, local: LLM) -> None:
    prompts = [f"prompt number {number}" for number in range(40)]
    expected = [output.outputs[0].token_ids for output in local.generate(prompts, GREEDY)]
    dice = random.Random(3)
    with LLM(str(folder), backend="remote", base_url=server.url, api_key=KEY, max_num_seqs=5) as llm:
        for number, prompt in enumerate(prompts):
            llm.add(str(number), llm.prepare_prompt(prompt, GREEDY))
        answers: dict[int, list[int]] = {}
        dropped: set[int] = set()
        while llm.has_unfinished_requests():
            for chunk in llm.step():
                if chunk.output is not None:
                    answers[int(chunk.request_id)] = chunk.output.outputs[0].token_ids
            if len(dropped) < 15:
                victim = dice.randrange(40)
                llm.abort(str(victim))
                dropped |= {victim} - set(answers)
    assert set(answers) == set(range(40)) - dropped
    assert all(answers[number] == expected[number] for number in answers)
    until(lambda: not any(server.leftovers.values()), "nothing is left there")


def test_a_server_in_front_of_a_server(server: LiveServer, folder: Path, local: LLM) -> None:
    spec = ModelSpec(str(folder), ("front",), {"backend": "remote", "base_url": server.url, "api_key": KEY})
    with serve(ServerConfig((spec,))) as front, front.client() as client:
        body = {"model": "front", "messages": CHATS[0], "temperature": 0, "max_tokens": 12, "ignore_eos": True}
        answer = client.post("/v1/chat/completions", json=body | {"return_token_ids": True}).json()
        assert answer["choices"][0]["token_ids"] == local.chat(CHATS[0], GREEDY)[0].outputs[0].token_ids
        refused = client.post("/v1/embeddings", json={"input": "abc"})
        assert refused.status_code == 400
        assert re.search("no embeddings", refused.json()["error"]["message"])
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert names == ["front", "poems", "letters"]
