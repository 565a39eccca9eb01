"""Programs written for vLLM's `LLM`: its prompt forms, parameters and properties; what is none of these is refused."""

from __future__ import annotations

import array
import asyncio
from collections import UserDict
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from glm4 import LLM, AsyncLLM, Message, SamplingParams
from glm4.chat.chat_request import ChatOptions, ChatRequest
from glm4.chat.template.template import ChatTemplate
from glm4.errors import InvalidRequestError
from glm4.prompt import Prompt
from tiny import VOCAB_SIZE, write_folder

P = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(write_folder(tmp_path_factory.mktemp("model"))), dtype="fp32", max_model_len=64) as made:
        yield made


IDS = [97, 98, 99]
FORMS: list[tuple[Any, list[list[int] | str]]] = [
    ("abc", ["abc"]),
    (["abc", "de"], ["abc", "de"]),
    (("abc", "de"), ["abc", "de"]),
    (np.array(["abc", "de"]), ["abc", "de"]),
    ({"prompt": "abc"}, ["abc"]),
    ([{"prompt": "abc"}, {"prompt": "de", "multi_modal_data": None}], ["abc", "de"]),
    ({"prompt_token_ids": IDS}, [IDS]),
    ([{"prompt_token_ids": np.array(IDS)}, "de", IDS], [IDS, "de", IDS]),
    ({"prompt_token_ids": IDS, "prompt": None}, [IDS]),
    (UserDict({"prompt": "abc"}), ["abc"]),
    (IDS, [IDS]),
    (tuple(IDS), [IDS]),
    (range(97, 100), [IDS]),
    ([IDS, [100]], [IDS, [100]]),
    (np.array(IDS), [IDS]),
    (np.array(IDS, np.uint16), [IDS]),
    (np.array([IDS, IDS]), [IDS, IDS]),
    ([np.array(IDS), np.array([100])], [IDS, [100]]),
    ([np.int64(97), np.int32(98), 99], [IDS]),
    (array.array("i", IDS), [IDS]),
    (Prompt(IDS), [IDS]),
    ([Prompt(IDS), "de"], [IDS, "de"]),
    ([], []),
]


@pytest.mark.parametrize(("given", "meant"), FORMS, ids=lambda value: str(value)[:40])
def test_prompt_forms(llm: LLM, given: Any, meant: list[list[int] | str]) -> None:
    outputs = llm.generate(given, P)
    expected = [text if isinstance(text, list) else llm.tokenizer.encode_prompt(text) for text in meant]
    assert [output.prompt_token_ids for output in outputs] == expected
    assert all(type(token) is int for output in outputs for token in output.prompt_token_ids)
    assert [output.prompt for output in outputs] == [None if isinstance(one, list) else one for one in meant]
    assert len(llm.embed(given)) == len(meant)
    streamed = [chunk.output.prompt_token_ids for chunk in llm.stream_generate(given, P) if chunk.output is not None]
    assert sorted(streamed) == sorted(expected)
    if len(meant) == 1 and not isinstance(given, list):
        assert llm.prepare_prompt(given, P).prompt_ids == expected[0]


def test_ids_beside_their_text(llm: LLM) -> None:
    (output,) = llm.generate([{"prompt_token_ids": IDS, "prompt": "shown, not read"}], P)
    assert (output.prompt, output.prompt_token_ids) == ("shown, not read", IDS)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (None, "NoneType"),
        ([None], "NoneType"),
        (b"hello", "bytes; decode"),
        ([b"hello"], "bytes; decode"),
        (bytearray(b"hello"), "bytes; decode"),
        (memoryview(b"hello"), "bytes; decode"),
        ({"prompt": b"hello"}, "'prompt' is text, not bytes"),
        ({"prompt_token_ids": b"hello"}, "list of token ids, not bytes"),
        ({"prompt_token_ids": "hello"}, "list of token ids, not str"),
        ({"prompt_token_ids": 5}, "list of token ids, not int"),
        ({"prompt": IDS}, "given as 'prompt_token_ids'"),
        ({}, "neither"),
        ({"prompt": None}, "neither"),
        ({"prompt": "a", "multi_modal_data": {"audio": 1}}, "multi_modal_data is {'image': a picture or a list"),
        ({"prompt": "a", "multi_modal_uuids": {"image": ["1"]}}, "'multi_modal_uuids' is not supported"),
        ({"prompt_embeds": np.zeros((2, 2))}, "'prompt_embeds' is not supported"),
        (USER, "'role' is not supported; for messages there is `chat`"),
        ([USER], "for messages there is `chat`"),
        (5, "not int"),
        (1.5, "not float"),
        (True, "not bool"),
        ([1.5, 2.5], "not float"),
        ([97, 1.5], "number 1 of the prompt is '1.5'"),
        ([97, True], "number 1 of the prompt is 'True'"),
        ([97, np.bool_(True)], "number 1 of the prompt"),
        ([97, "a"], "number 1 of the prompt is 'a'"),
        ([97, None], "number 1 of the prompt is 'None'"),
        (np.array([1.0, 2.0]), "not float"),
        (np.array([True]), "not bool"),
        (np.array(5), "not int"),
        ([["a"]], "number 0 of the prompt is 'a'"),
        ([[]], "empty"),
        ({"prompt_token_ids": []}, "empty"),
        ([-1], "between 0 and"),
        ([97, VOCAB_SIZE], "between 0 and"),
        (np.array([-1]), "between 0 and"),
        ([2**70], "between 0 and"),
        ((text for text in ["a"]), "not generator"),
        ({"a", "b"}, "not set"),
        (object(), "not object"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_a_prompt_is_refused_by_name(llm: LLM, given: Any, match: str) -> None:
    for use in (lambda: llm.generate(given, P), lambda: llm.stream_generate(given, P), lambda: llm.embed(given)):
        with pytest.raises(InvalidRequestError, match=match) as caught:
            list(use())
        assert caught.value.param == "prompt"
    assert not llm.has_unfinished_requests()


def test_one_prompt_where_one_is_taken(llm: LLM) -> None:
    async def scenario() -> None:
        assert llm.checkpoint is not None
        engine = await AsyncLLM.create(str(llm.checkpoint.path), max_model_len=64)
        assert (await engine.generate({"prompt_token_ids": np.array(IDS)}, P)).prompt_token_ids == IDS
        assert (await engine.embed({"prompt": "abc"})).prompt_tokens == 5
        for given in (["a", "b"], b"abc", None):
            with pytest.raises(InvalidRequestError):
                await engine.generate(given, P)  # type: ignore[arg-type]
        await engine.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "count"),
    [(USER, 1), (Message("user", "hi"), 1), ([USER], 1), ((USER,), 1), ([[USER], [Message("user", "hi")]], 2)],
    ids=lambda value: str(value)[:40],
)
def test_conversation_forms(llm: LLM, given: Any, count: int) -> None:
    expected = llm.chat([USER], P)[0].prompt_token_ids
    assert [output.prompt_token_ids for output in llm.chat(given, P)] == [expected] * count
    chunks = list(llm.stream_chat(given, P))
    assert sum(chunk.output is not None for chunk in chunks) == count


@pytest.mark.parametrize(
    "given", [None, "hi", b"hi", 5, [], [[]], ["hi"], [USER, [USER]], [None], (one for one in [USER])]
)
def test_what_is_not_a_conversation_is_refused_by_name(llm: LLM, given: Any) -> None:
    for use in (lambda: llm.chat(given, P), lambda: llm.stream_chat(given, P)):
        with pytest.raises(InvalidRequestError) as caught:
            list(use())
        assert str(caught.value.param).startswith("messages")


def test_one_params_per_prompt(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [P, P.replace(max_tokens=3)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 3]
    outputs = llm.chat([[USER], [USER]], [P, P.replace(max_tokens=3)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 3]
    with pytest.raises(InvalidRequestError, match="2 prompts, but 1 sampling_params"):
        llm.generate(["a", "b"], [P])
    for wrong in ([P, {"temperature": 0}], {"temperature": 0}, 5):
        with pytest.raises(InvalidRequestError, match="sampling_params"):
            llm.generate(["a", "b"], wrong)  # type: ignore[arg-type]


def test_numpy_and_none_in_sampling_params() -> None:
    numbers: dict[str, Any] = {
        "n": np.int64(2), "temperature": np.float32(0.5), "top_p": np.float64(0.5), "top_k": np.int32(4),
        "seed": np.uint64(2**62), "stop": np.array(["a", "b"]), "stop_token_ids": np.array([1, 2]),
        "max_tokens": np.int64(3), "ignore_eos": np.bool_(True), "logit_bias": {np.int64(5): np.float32(0.5)},
    }  # fmt: skip
    given = SamplingParams(**numbers)
    meant = SamplingParams(
        n=2, temperature=0.5, top_p=0.5, top_k=4, seed=2**62, stop=["a", "b"], stop_token_ids=(1, 2), max_tokens=3,
        ignore_eos=True, logit_bias={5: 0.5},
    )  # fmt: skip
    assert given == meant
    assert all(type(token) is int for token in given.stop_token_ids)
    assert type(given.temperature) is float
    assert given.stop_strings == ("a", "b")
    assert SamplingParams(stop_token_ids=[np.int64(7), 8]).stop_token_ids == (7, 8)
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, seed=None) == SamplingParams()  # type: ignore[arg-type]
    refused: tuple[dict[str, Any], ...] = (
        {"max_tokens": np.float32(3)},
        {"temperature": np.array([1.0])},
        {"stop_token_ids": [np.float64(1)]},
    )
    for wrong in refused:
        with pytest.raises(InvalidRequestError):
            SamplingParams(**wrong)


def test_properties_of_outputs(llm: LLM) -> None:
    prompt = "a prompt that is longer than a page of the cache"
    llm.generate(prompt, P)
    (output,) = llm.generate(prompt, P.replace(logprobs=1), use_tqdm=False, lora_request=None)
    (sample,) = output.outputs
    assert output.request_id
    assert output.finished is True
    assert output.num_cached_tokens == 32
    assert (output.prompt, output.prompt_logprobs, output.lora_request) == (prompt, None, None)
    assert (sample.index, sample.finish_reason, sample.stop_reason) == (0, "length", None)
    assert sample.finished()
    assert sample.logprobs is not None
    assert sample.cumulative_logprob == sum(entry.logprob for entry in sample.logprobs) < 0
    assert llm.generate(prompt, P)[0].outputs[0].cumulative_logprob is None
    assert llm.embed(prompt)[0].outputs.embedding.shape == (64,)
    assert llm.get_tokenizer() is llm.tokenizer
    assert llm.get_default_sampling_params() == llm.default_sampling_params()


def test_variables_of_the_template(llm: LLM) -> None:
    assert llm.processor.template is not None
    template = ChatTemplate("{% if shout %}HEY {% endif %}{{ messages[0].content }}")
    other = LLM.from_backend(llm.backend, replace(llm.processor, template=template))
    prompts = [
        other.tokenizer.decode(other.prepare_chat([USER], P, **options).prompt_ids)
        for options in cast("list[ChatOptions]", [{}, {"chat_template_kwargs": {"shout": True}}])
    ]
    assert prompts == ["hi", "HEY hi"]
    assert ChatRequest.of([USER], chat_template_kwargs={"a": 1}) == ChatRequest.of([USER], template_kwargs={"a": 1})


def test_a_lora_request_is_refused_with_what_to_do(llm: LLM) -> None:
    request: Any = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path="a")
    with pytest.raises(InvalidRequestError, match="adapter=name"):
        llm.generate("a", P, lora_request=request)
    with pytest.raises(InvalidRequestError, match="adapter=name"):
        llm.chat([USER], P, lora_request=request)
