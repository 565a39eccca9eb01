"""The field walk: every request field of OpenAI's schema is honoured, a documented label, or refused by name.

The list of fields is the official client library's, so a field that OpenAI adds fails here until it is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import chat_completion_stream_options_param
from openai.types.chat import completion_create_params as chat_create_params
from sampling_options import SAMPLING

from glm4.api.fields import LABELS, OPTIONS, Field, body_schema
from glm4.api.llama_cpp import request as llama_cpp
from glm4.api.openai import parse_chat, parse_completion
from glm4.api.openai.fields import CHAT_FIELDS, COMPLETION_FIELDS, REFUSED, read_fields
from glm4.api.responses.request import parse_responses
from glm4.errors import InvalidRequestError
from glm4.llm import LLM
from glm4.sampling_params import SamplingParams, StructuredOutputs
from glm4.server.endpoints.embeddings import EMBEDDING_FIELDS
from scripted_llm import scripted_llm
from vocabularies import tiny_chatml

DEFAULTS = SamplingParams(temperature=0.7, repetition_penalty=1.1)
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}
FUNCTION = {"type": "function", "function": {"name": "f"}}

OPENAI_CHAT = frozenset(
    {
        *chat_create_params.CompletionCreateParamsNonStreaming.__annotations__,
        *chat_create_params.CompletionCreateParamsStreaming.__annotations__,
    }
)
OPENAI_COMPLETION = frozenset(
    {
        *completion_create_params.CompletionCreateParamsNonStreaming.__annotations__,
        *completion_create_params.CompletionCreateParamsStreaming.__annotations__,
    }
)
OPENAI_EMBEDDING = frozenset(embedding_create_params.EmbeddingCreateParams.__annotations__)

# Field → a value that makes another request of it (with what else the field needs).
TELLING: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (value, {}) for name, (value, _) in SAMPLING.items()},
    "model": ("anything", {}),
    "metadata": ({"a": "b"}, {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "structured_outputs": ({"regex": "a+"}, {}),
    "guided_json": ({"type": "integer"}, {}),
    "guided_regex": ("a+", {}),
    "guided_choice": (["a"], {}),
    "guided_grammar": ('start: "a"', {}),
    "return_token_ids": (True, {}),
    "return_tokens_as_token_ids": (True, {}),
}
TELLING_CHAT: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": ([{"role": "user", "content": "ho"}], {}),
    "tools": ([FUNCTION], {}),
    "tool_choice": ("none", {"tools": [FUNCTION]}),
    "parallel_tool_calls": (False, {"tools": [FUNCTION]}),
    "response_format": ({"type": "json_object"}, {}),
    "max_completion_tokens": (9, {}),
    "logprobs": (True, {}),
    "top_logprobs": (4, {"logprobs": True}),
    "add_generation_prompt": (False, {}),
    "continue_final_message": (True, {"messages": [{"role": "assistant", "content": "Well"}]}),
    "reasoning_effort": ("high", {}),
    "chat_template_kwargs": ({"enable_thinking": False}, {}),
    "include_reasoning": (False, {}),
}
TELLING_COMPLETION: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt": ("ho", {}),
    "echo": (True, {}),
    "logprobs": (2, {}),
    "add_special_tokens": (False, {}),
    "parse_special": (True, {}),
}
# Fields of which one value is done, which is what happens without them; any other is refused.
ONE_VALUE: dict[str, tuple[Any, Any]] = {
    "modalities": (["text"], ["text", "audio"]),
    "service_tier": ("auto", "priority"),
    "store": (False, True),
    "verbosity": ("medium", "low"),
    "best_of": (1, 2),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nFine.")


Parse = Callable[[Mapping[str, Any], SamplingParams], Any]
WALKS = [
    *((name, CHAT_FIELDS, TELLING | TELLING_CHAT, parse_chat, CHAT) for name in CHAT_FIELDS),
    *((name, COMPLETION_FIELDS, TELLING | TELLING_COMPLETION, parse_completion, COMPLETION)
      for name in COMPLETION_FIELDS),
]  # fmt: skip
WALKS = [walk for walk in WALKS if walk[0] != "cache_salt"]  # read with the key, before the rest; see test_keys


@pytest.mark.parametrize(
    ("name", "table", "telling", "parse", "body"), WALKS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_changes_the_request_or_is_a_label(
    name: str,
    table: Mapping[str, Field],
    telling: Mapping[str, tuple[Any, dict[str, Any]]],
    parse: Parse,
    body: dict[str, Any],
) -> None:
    if name not in body:
        assert parse(body | {name: None}, DEFAULTS) == parse(body, DEFAULTS)
    if name in LABELS:
        assert parse(body | {name: "someone"}, DEFAULTS) == parse(body, DEFAULTS)
    elif name in ONE_VALUE:
        done, other = ONE_VALUE[name]
        assert parse(body | {name: done}, DEFAULTS) == parse(body, DEFAULTS)
        with pytest.raises(InvalidRequestError) as caught:
            parse(body | {name: other}, DEFAULTS)
        assert caught.value.param == name
    else:
        value, needs = telling[name]
        assert parse(body | needs | {name: value}, DEFAULTS) != parse(body | needs, DEFAULTS)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_sampling_options_arrive_as_sampling_params(name: str) -> None:
    value, expected = SAMPLING[name]
    chat = parse_chat(CHAT | {name: value}, DEFAULTS).request
    for params in (chat.params, parse_completion(COMPLETION | {name: value}, DEFAULTS).params):
        assert params is not None
        assert getattr(params, name) == expected
        assert params.temperature == (0 if name == "temperature" else 0.7)  # the model's own default otherwise


@pytest.mark.parametrize(
    ("declared", "table"),
    [(OPENAI_CHAT, CHAT_FIELDS), (OPENAI_COMPLETION, COMPLETION_FIELDS), (OPENAI_EMBEDDING, EMBEDDING_FIELDS)],
    ids=["chat", "completion", "embedding"],
)
def test_every_field_of_openai_is_decided(declared: frozenset[str], table: Mapping[str, Field]) -> None:
    assert len(declared) >= 5
    assert declared - set(table) - set(REFUSED) == set()
    for name in declared - set(table):
        with pytest.raises(InvalidRequestError) as caught:
            read_fields({name: "x"}, table)
        assert caught.value.param == name
        assert REFUSED[name] in str(caught.value)


def test_refused_fields_are_of_openai_and_in_no_table() -> None:
    assert set(REFUSED) <= OPENAI_CHAT | OPENAI_COMPLETION
    assert not set(REFUSED) & (set(CHAT_FIELDS) | set(COMPLETION_FIELDS) | set(EMBEDDING_FIELDS))


def test_every_stream_option_of_openai_is_decided() -> None:
    options = chat_completion_stream_options_param.ChatCompletionStreamOptionsParam.__annotations__
    assert set(options) == {"include_usage", "include_obfuscation"}
    plain = parse_chat(CHAT | {"stream": True}, DEFAULTS)
    usage = parse_chat(CHAT | {"stream": True, "stream_options": {"include_usage": True}}, DEFAULTS)
    every = {"include_usage": True, "continuous_usage_stats": True}
    continuous = parse_chat(CHAT | {"stream": True, "stream_options": every}, DEFAULTS)
    assert plain != usage != continuous
    parse_chat(CHAT | {"stream": True, "stream_options": {"include_obfuscation": False}}, DEFAULTS)
    with pytest.raises(InvalidRequestError, match="padding"):
        parse_chat(CHAT | {"stream": True, "stream_options": {"include_obfuscation": True}}, DEFAULTS)


def test_the_schema_of_a_body_has_every_field() -> None:
    schema = body_schema(CHAT_FIELDS, ["messages"])
    assert set(schema["properties"]) == set(CHAT_FIELDS)
    assert (schema["required"], schema["additionalProperties"]) == (["messages"], False)


FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}},
    {"response_format": {"type": "json_object", "schema": {"type": "nope"}}},
    {"structured_outputs": {"json": {"type": "nope"}}},
    {"guided_json": {"type": "nope"}},
    {"guided_regex": "("},
    {"guided_choice": []},
    {"guided_grammar": "start: nope"},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_an_error_names_the_form_that_was_sent(form: dict[str, Any], llm: LLM) -> None:
    (name,) = form
    with pytest.raises(InvalidRequestError, match=name) as chat:
        llm.prepare(parse_chat(CHAT | form, DEFAULTS).request)
    with pytest.raises(InvalidRequestError, match=name) as completion:
        llm.prepare_prompt("hi", parse_completion(COMPLETION | form, DEFAULTS).params)
    assert chat.value.param == completion.value.param == name
    assert "structured_outputs" not in str(chat.value) or name == "structured_outputs"


def test_one_form_at_a_time() -> None:
    text = {"response_format": {"type": "text"}}
    assert parse_chat(CHAT | text | {"guided_choice": ["a"]}, DEFAULTS).request.params == DEFAULTS.replace(
        structured_outputs=StructuredOutputs(choice=["a"])
    )
    with pytest.raises(InvalidRequestError, match="response_format and guided_choice exclude each other"):
        parse_chat(CHAT | {"response_format": {"type": "json_object"}, "guided_choice": ["a"]}, DEFAULTS)


@pytest.mark.parametrize(
    ("parse", "sent"),
    [
        (lambda b: parse_chat({**CHAT, "logprobs": True, **b}, DEFAULTS), {"top_logprobs": "x"}),
        (lambda b: parse_chat({**CHAT, **b}, DEFAULTS), {"max_completion_tokens": 2.5}),
        (lambda b: parse_chat({**CHAT, **b}, DEFAULTS), {"max_tokens": "x"}),
        (lambda b: parse_completion({**COMPLETION, **b}, DEFAULTS), {"logprobs": True}),
        (lambda b: parse_responses({"input": "a", **b}, DEFAULTS, thinks=False), {"max_output_tokens": 0}),
        (lambda b: parse_responses({"input": "a", **b}, DEFAULTS, thinks=False), {"top_logprobs": 99}),
        (lambda b: llama_cpp.parse_completion({"prompt": "a", **b}, DEFAULTS, tiny_chatml()), {"repeat_penalty": "x"}),
        (lambda b: llama_cpp.parse_completion({"prompt": "a", **b}, DEFAULTS, tiny_chatml()), {"n_predict": 0}),
        (lambda b: llama_cpp.parse_completion({"prompt": "a", **b}, DEFAULTS, tiny_chatml()), {"n_probs": 999}),
    ],
)
def test_errors_name_the_field_that_was_sent(parse: Callable[[dict[str, Any]], object], sent: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(sent)
    (name,) = sent
    assert caught.value.param == name
    assert str(caught.value).startswith(f"{name} ")
