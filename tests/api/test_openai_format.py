"""OpenAI bodies: what is impossible is refused by name, and responses have OpenAI's shape.

That every field of OpenAI's schema is honoured or refused is the matter of `test_openai_fields`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from glm4.api.openai import chat_completion, parse_chat, parse_completion, text_completion
from glm4.api.openai.request import ResponseOptions
from glm4.chat.messages import Message, ToolCall
from glm4.errors import InvalidRequestError
from glm4.logprobs import TextToken, TokenLogprobs
from glm4.outputs import CompletionOutput, RequestMetrics, RequestOutput
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer, load_tokenizer
from tiny import write_tokenizer

DEFAULTS = SamplingParams(temperature=0.7, repetition_penalty=1.1)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", ["functions", "audio", "suffix", "priority", "Messages", ""])
def test_other_fields_are_refused_by_name(name: str) -> None:
    for parse, body in ((parse_chat, {"messages": MESSAGES}), (parse_completion, {"prompt": "hi"})):
        with pytest.raises(InvalidRequestError) as caught:
            parse(body | {name: 1}, DEFAULTS)
        assert caught.value.param == name
        parse(body | {name: None}, DEFAULTS)  # null is "not given"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", []),
        ("messages", "hi"),
        ("messages", [1]),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("n", 0),
        ("n", 1000),
        ("stop", 5),
        ("stop", [1]),
        ("stop", ""),
        ("stop_token_ids", "5"),
        ("stop_token_ids", [True]),
        ("ignore_eos", 1),
        ("skip_special_tokens", "yes"),
        ("logit_bias", [1]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1_0": 1}),
        ("logit_bias", {"1": "much"}),
        ("logit_bias", {"1": 101}),
        ("logprobs", 5),
        ("stream", 0),
        ("stream", "true"),
        ("stream_options", {"include_usage": True}),  # without stream
        ("tools", {"type": "function"}),
        ("tools", ["f"]),
        ("parallel_tool_calls", 0),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("metadata", {"a": 1}),
        ("metadata", "a"),
        ("metadata", {"a": "x" * 513}),
        ("metadata", {str(n): "" for n in range(17)}),
        ("user", 5),
        ("model", 5),
        ("prompt_logprobs", 21),
        ("top_logprobs", 3),  # without logprobs
    ],
)
def test_impossible_chat_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat({"messages": MESSAGES, name: value}, DEFAULTS)
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"xml": "x"}}, "structured_outputs.xml"),
        ({"structured_outputs": {"regex": "x"}, "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_stands_inside_a_field_is_named_with_it(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat({"messages": MESSAGES, **body}, DEFAULTS)
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [None, "", [], [""], [1, "a"], ["a", 1], [True], 5, [[]], [["a"]]])
def test_impossible_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_completion({"prompt": prompt}, DEFAULTS)
    assert caught.value.param == "prompt"


def test_prompts_of_text_and_of_ids() -> None:
    for prompt, read in (("a", ["a"]), (["a"], ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]])):
        assert parse_completion({"prompt": prompt}, DEFAULTS).prompts == read
    assert parse_completion({"prompt": [[1, 2], [3]]}, DEFAULTS).prompts == [[1, 2], [3]]


def test_scoring_a_prompt_generates_nothing() -> None:
    """What lm-eval sends: no answer, only the log-probabilities of the prompt."""
    request = parse_completion({"prompt": "hi", "max_tokens": 0, "echo": True, "logprobs": 1}, DEFAULTS)
    assert (request.generate, request.params.max_tokens, request.params.prompt_logprobs) == (False, 1, 1)
    with pytest.raises(InvalidRequestError, match="unless echo"):
        parse_completion({"prompt": "hi", "max_tokens": 0}, DEFAULTS)


def test_all_answers_are_returned() -> None:
    assert parse_completion({"prompt": "hi", "n": 2, "best_of": 2}, DEFAULTS).params.n == 2
    with pytest.raises(InvalidRequestError) as caught:
        parse_completion({"prompt": "hi", "n": 2, "best_of": 3}, DEFAULTS)
    assert caught.value.param == "best_of"


def test_two_lengths_that_disagree() -> None:
    with pytest.raises(InvalidRequestError, match="disagree"):
        parse_chat({"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 2}, DEFAULTS)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return load_tokenizer(tmp_path)


def finished(sample: CompletionOutput) -> RequestOutput:
    metrics = RequestMetrics()
    return RequestOutput("r", None, [1, 2, 3], [sample], None, metrics)


def test_chat_completion_body(tokenizer: Tokenizer) -> None:
    call = ToolCall("call_1", "f", '{"a": 1}')
    sample = CompletionOutput(0, "", [97, 98], "tool_calls", reasoning="hm", tool_calls=(call,))
    body = chat_completion(finished(sample), "tiny", tokenizer, ResponseOptions(metadata={"k": "v"}))
    assert body["object"] == "chat.completion"
    assert (body["model"], body["metadata"]) == ("tiny", {"k": "v"})
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
            "stop_reason": None,
        }
    ]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 2, 5)
    # What we write is what we read: the message goes into the next request unchanged.
    assert Message.from_dict(body["choices"][0]["message"]).tool_calls == (call,)


def test_logprobs_of_both_bodies(tokenizer: Tokenizer) -> None:
    logprobs = [
        TokenLogprobs(0xE4, -0.5, 1, ((0xE4, -0.5), (98, -1.0))),
        TokenLogprobs(98, -math.inf, 9, ((287, -math.inf),)),  # a row without a token
    ]
    shares = [TextToken(logprobs[0], "\ufffd".encode()), TextToken(logprobs[1], b"b")]
    sample = CompletionOutput(0, "\ufffdb", [0xE4, 98], "length", logprobs=logprobs, text_logprobs=shares)
    content = chat_completion(finished(sample), "tiny", tokenizer)["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "\ufffd",
        "logprob": -0.5,
        "bytes": [0xEF, 0xBF, 0xBD],  # as in the text
        "top_logprobs": [
            {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE4]},
            {"token": "b", "logprob": -1.0, "bytes": [98]},
        ],
    }
    assert content[1]["logprob"] == -9999.0
    body = text_completion(finished(sample), "tiny", tokenizer)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["bytes:\\xe4", "b"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"bytes:\\xe4": -0.5, "b": -1.0}, {"b": -9999.0, "token_id:287": -9999.0}],
        "text_offset": [0, 1],
    }
    json.dumps(body, allow_nan=False)
