"""An error names the field that was sent, whatever the option is called inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glm4.api.anthropic import parse_message
from glm4.api.llama_cpp import parse_completion as parse_llama_cpp
from glm4.api.ollama import parse_chat as parse_ollama
from glm4.api.openai import parse_chat, parse_completion
from glm4.api.responses.request import parse_responses
from glm4.errors import InvalidRequestError
from glm4.llm import LLM
from glm4.sampling_params import SamplingParams
from scripted_llm import scripted_llm

DEFAULTS = SamplingParams()
NOPE = {"type": "nope"}
HI = [{"role": "user", "content": "hi"}]
TWO_FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": schema}}
                 for name, schema in (("f", {"type": "object"}), ("g", {"properties": {"a": NOPE}}))]  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nFine.", dialect="glm4") as made:
        yield made


def chat(llm: LLM, body: dict[str, Any]) -> None:
    llm.prepare(parse_chat({"messages": HI, **body}, DEFAULTS).request)


def completion(llm: LLM, body: dict[str, Any]) -> None:
    llm.prepare_prompt("hi", parse_completion({"prompt": "hi", **body}, DEFAULTS).params)


def responses(llm: LLM, body: dict[str, Any]) -> None:
    wanted = parse_responses({"input": "hi", **body}, DEFAULTS, thinks=False)
    llm.prepare(wanted.chat([], wanted.items))


def messages(llm: LLM, body: dict[str, Any]) -> None:
    llm.prepare(parse_message({"max_tokens": 5, "messages": HI, **body}, DEFAULTS).chat)


def llama_cpp(llm: LLM, body: dict[str, Any]) -> None:
    parse_llama_cpp({"prompt": "hi", **body}, DEFAULTS, llm.tokenizer)


def ollama(llm: LLM, body: dict[str, Any]) -> None:
    parse_ollama({"messages": HI, **body}, DEFAULTS, context=256, thinks=False)


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (chat, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (chat, {"max_tokens": 0}, "max_tokens"),
        (chat, {"logprobs": True, "top_logprobs": 30}, "top_logprobs"),
        (chat, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (chat, {"response_format": {"type": "json_object", "schema": NOPE}}, "response_format"),
        (chat, {"guided_regex": "("}, "guided_regex"),
        (chat, {"tools": TWO_FUNCTIONS, "tool_choice": "required"}, "tools[1].function.parameters"),
        (completion, {"guided_json": NOPE}, "guided_json"),
        (completion, {"structured_outputs": {"json": NOPE}}, "structured_outputs"),
        (responses, {"max_output_tokens": 0}, "max_output_tokens"),
        (responses, {"top_logprobs": 30}, "top_logprobs"),
        (responses, {"text": {"format": {"type": "json_schema", "name": "x", "schema": NOPE}}}, "text.format"),
        (messages, {"stop_sequences": ["x"] * 17}, "stop_sequences"),
        (messages, {"temperature": 101}, "temperature"),
        (messages, {"output_config": {"format": {"type": "json_schema", "schema": NOPE}}}, "output_config.format"),
        (llama_cpp, {"n_predict": 0}, "n_predict"),
        (llama_cpp, {"max_tokens": 0}, "max_tokens"),
        (llama_cpp, {"repeat_penalty": 0}, "repeat_penalty"),
        (llama_cpp, {"n_probs": 30}, "n_probs"),
        (ollama, {"options": {"num_predict": 0}}, "num_predict"),
        (ollama, {"options": {"repeat_penalty": 0}}, "repeat_penalty"),
        (ollama, {"options": {"num_ctx": 257}}, "num_ctx"),
        (ollama, {"logprobs": True, "top_logprobs": 30}, "top_logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_the_field_that_was_sent_is_named(
    llm: LLM, read: Callable[[LLM, dict[str, Any]], None], body: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(llm, body)
    assert caught.value.param == param
    assert ("function 'g'" if param.startswith("tools") else param) in str(caught.value)
