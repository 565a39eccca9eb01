"""Whatever is in the fields of a request, its readers take it or say what is wrong: no other exception comes out.

Good requests of every API are altered at random places (the seed is fixed), read, rendered and queued. Over HTTP, any
other exception would be a 500.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from glm4 import SamplingParams
from glm4.api.anthropic import parse_count, parse_message
from glm4.api.fields import read_fields
from glm4.api.llama_cpp import parse_completion as parse_llama_cpp
from glm4.api.llama_cpp import prompt_ids
from glm4.api.ollama import OllamaRequest
from glm4.api.ollama import parse_chat as parse_ollama_chat
from glm4.api.ollama import parse_generate as parse_ollama_generate
from glm4.api.openai import parse_chat, parse_completion
from glm4.api.responses.items import resolved
from glm4.api.responses.request import parse_input_tokens, parse_responses
from glm4.api.vllm import parse_generate
from glm4.batch.files import InputLine
from glm4.batch.lines import _request as batch_request
from glm4.chat.chat_request import ChatRequest
from glm4.cli.conversation.conversation import _from_document
from glm4.errors import Glm4Error, InvalidRequestError, TemplateError
from glm4.llm import LLM
from glm4.requests.input_processor import PreparedRequest
from glm4.server.endpoints.adapters import LOAD_FIELDS
from glm4.server.endpoints.embeddings import EMBEDDING_FIELDS
from glm4.server.endpoints.tokenize import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from tiny import write_folder

REQUESTS = 400
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CALL = {"id": "A", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["x"], "min_tokens": 1,
            "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1, "logit_bias": {"5": 1},
            "stop_token_ids": [5], "ignore_eos": True, "stream": True, "user": "u"}  # fmt: skip
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "s", "name": "n"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r", "annotations": []},
        {"role": "tool", "tool_call_id": "A", "content": "1"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "refusal", "refusal": "r"}]},
        {"role": "user", "content": "go", "type": "text"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "max_tokens": 5,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "prompt_logprobs": 1,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    **SAMPLING,
}
FORMED = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    "max_completion_tokens": 5,
}
COMPLETION = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 5, "echo": True, "logprobs": 1, "best_of": 2, "n": 2,
              "structured_outputs": {"regex": "a+"}, **SAMPLING}  # fmt: skip
IDS = {"prompt": [5, 6, 7], "max_tokens": 0, "echo": True, "guided_json": SCHEMA}
GENERATE: dict[str, Any] = {
    "model": "tiny",
    "token_ids": [5, 6, 7],
    "request_id": "r-1",
    "sampling_params": {**{name: SAMPLING[name] for name in SAMPLING if name not in ("stream", "user")},
                        "max_tokens": 5, "logprobs": 1, "structured_outputs": {"json": SCHEMA}, "detokenize": True},
    "stream": True,
    "stream_options": {"include_usage": True},
    "cache_salt": "s",
    "return_token_ids": True,
    "output_mode": "tokens",
    "priority": 0,
}  # fmt: skip
RESPONSES = {
    "model": "tiny",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "id": "r"},
        {"type": "function_call", "call_id": "A", "name": "f", "arguments": "{}", "id": "fc", "status": "completed"},
        {"type": "function_call_output", "call_id": "A", "output": [{"type": "output_text", "text": "1"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "t", "annotations": []}]},
        {"role": "user", "content": "go"},
    ],
    "instructions": "i",
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "max_output_tokens": 5,
    "store": False,
    "temperature": 0.5,
    "metadata": {"a": "b"},
}
COUNT = {key: RESPONSES[key] for key in ("input", "tools", "tool_choice", "text", "reasoning", "instructions")}
ANTHROPIC_COUNT = {
    "model": "tiny",
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                                          {"type": "tool_use", "id": "A", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "A", "is_error": True,
                                      "content": [{"type": "text", "text": "1"}]}, {"type": "text", "text": "go"}]},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA, "input_examples": [{"a": 1}]}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 9},
}  # fmt: skip
ANTHROPIC = {
    **ANTHROPIC_COUNT,
    **{"max_tokens": 5, "stop_sequences": ["x"], "temperature": 0.5, "top_p": 0.5, "top_k": 3},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "u"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
}
LLAMA_CPP = {"prompt": ["a", [5, "b"]], "n_predict": 5, "logit_bias": [[5, 1.5], ["a", False]], "n_probs": 1,
             "seed": -1, "response_fields": ["content"], "repeat_penalty": 1.1, "stop": "x"}  # fmt: skip
OLLAMA_OPTIONS = {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "stop": ["x"], "seed": -1, "num_predict": 5,
                  "num_ctx": 64, "repeat_penalty": 1.1, "repeat_last_n": -1,
                  "num_gpu": 1, "use_mmap": True}  # fmt: skip
OLLAMA: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "", "thinking": "t",
         "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "1", "tool_name": "f"},
        {"role": "user", "content": "go", "images": []},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "options": OLLAMA_OPTIONS,
    **{"think": False, "stream": False, "keep_alive": "5m", "logprobs": True, "top_logprobs": 2, "truncate": False},
}  # fmt: skip
OLLAMA_TEXT = {"model": "tiny", "prompt": "p", "system": "s", "format": SCHEMA, "keep_alive": 3, "images": [],
               "options": OLLAMA_OPTIONS}  # fmt: skip
BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}

SAVED = {"model": "m", "messages": [*CHAT["messages"][1:], {"role": "user", "content": "a", "interrupted": True}],
         "params": {"temperature": 0.5, "stop": ["x"], "max_tokens": 5}}  # fmt: skip

DEEP: Any = "x"
for _ in range(60):
    DEEP = [DEEP] if isinstance(DEEP, dict) else {"properties": DEEP}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324,
    "", " ", "x", "\0", "\ud800", "é" * 300, "none", "<|user|>", "1e9", "9" * 400, [], [[]], [None], [5], ["x"], [{}],
    {}, {"": None}, {"type": "text"}, {"type": 5}, {"type": ["text"]}, {"x": {"y": []}}, DEEP,
)  # fmt: skip
NOT_JSON: tuple[Any, ...] = (float("nan"), float("inf"), 10**5000, b"x", {1}, {5: 5}, (1,), object())
"""What only callers in Python can write."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a request."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def altered(body: dict[str, Any], source: random.Random, odd: tuple[Any, ...]) -> dict[str, Any]:
    """A copy with one to three places replaced, removed, repeated or renamed."""
    changed = copy.deepcopy(body)
    for _ in range(source.randint(1, 3)):
        found = list(places(changed))
        if not found:
            break
        holder, key = source.choice(found)
        how = source.random()
        if how < 0.7:
            holder[key] = copy.deepcopy(source.choice(odd))
        elif how < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[source.choice(["type", "x", "", "content", "\ud800"])] = holder.pop(key)
    return changed


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_folder(tmp_path_factory.mktemp("model") / "m", chat_template=None)
    with LLM(str(folder), max_model_len=4096, max_num_seqs=4, dtype="fp32") as made:
        yield made


def queue(llm: LLM, prepared: PreparedRequest) -> None:
    llm.add("odd", prepared)
    llm.step()
    llm.abort("odd")


Read = Callable[[LLM, Any], object]
DEFAULTS = SamplingParams()


def chat(llm: LLM, body: Any) -> None:
    queue(llm, llm.prepare(parse_chat(body, DEFAULTS).request))


def completion(llm: LLM, body: Any) -> None:
    wanted = parse_completion(body, DEFAULTS)
    for prompt in wanted.prompts:
        queue(llm, llm.prepare_prompt(prompt, wanted.params))


def generate(llm: LLM, body: Any) -> None:
    wanted = parse_generate(body, DEFAULTS)
    queue(llm, llm.prepare_prompt(wanted.token_ids, wanted.params))


def responses(llm: LLM, body: Any) -> None:
    wanted = parse_responses(body, DEFAULTS, thinks=False)
    queue(llm, llm.prepare(wanted.chat([], resolved(wanted.items, {}))))


def input_tokens(llm: LLM, body: Any) -> None:
    wanted = parse_input_tokens(body, DEFAULTS, thinks=False)
    llm.prepare(wanted.chat([], resolved(wanted.items, {})))


def anthropic(llm: LLM, body: Any) -> None:
    queue(llm, llm.prepare(parse_message(body, DEFAULTS).chat))


def llama_cpp(llm: LLM, body: Any) -> None:
    wanted = parse_llama_cpp(body, DEFAULTS, llm.tokenizer)
    for prompt in wanted.prompts:
        queue(llm, llm.prepare_prompt(prompt_ids(prompt, llm.tokenizer), wanted.params))


def ollama(read: Callable[..., OllamaRequest], llm: LLM, body: Any) -> None:
    wanted = read(body, DEFAULTS, context=llm.info.max_model_len, thinks=False)
    if isinstance(wanted.prompt, ChatRequest):
        queue(llm, llm.prepare(wanted.prompt))
    elif wanted.prompt is not None:
        queue(llm, llm.prepare_prompt(wanted.prompt, wanted.params))


def batch(llm: LLM, row: Any) -> None:
    line = InputLine(1, json.dumps(row).encode())
    chat(llm, batch_request(line)["body"])


def tables(llm: LLM, bodies: Any) -> None:
    for table in (TOKENIZE_FIELDS, DETOKENIZE_FIELDS, EMBEDDING_FIELDS, LOAD_FIELDS):
        read_fields({name: value for name, value in bodies.items() if name in table}, table)


READERS: dict[str, tuple[Read, dict[str, Any]]] = {
    "chat": (chat, CHAT),
    "chat with a form": (chat, FORMED),
    "completion": (completion, COMPLETION),
    "completion of ids": (completion, IDS),
    "token ids": (generate, GENERATE),
    "responses": (responses, RESPONSES),
    "input tokens": (input_tokens, COUNT),
    "messages": (anthropic, ANTHROPIC),
    "count tokens": (lambda llm, body: llm.render(parse_count(body, DEFAULTS).chat), ANTHROPIC_COUNT),
    "llama.cpp": (llama_cpp, LLAMA_CPP),
    "Ollama's chat": (partial(ollama, parse_ollama_chat), OLLAMA),
    "Ollama's generate": (partial(ollama, parse_ollama_generate), OLLAMA_TEXT),
    "batch": (batch, BATCH),
    "saved conversation": (lambda llm, body: _from_document(body), SAVED),
    "other tables": (tables, {"tokens": [5], "input": ["a"], "prompt": "a", "encoding_format": "float",
                              "lora_name": "a", "lora_path": "b", "add_special_tokens": True, "content": "c"}),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_odd_fields_are_taken_or_named(name: str, llm: LLM) -> None:
    read, body = READERS[name]
    with_nothing_odd = copy.deepcopy(body)
    if name != "batch":
        read(llm, {**with_nothing_odd, "prompt_logprobs": None} if name == "chat" else with_nothing_odd)
    source, taken = random.Random(f"fields of {name}"), 0
    for _ in range(REQUESTS):
        changed = altered(body, source, ODD)
        try:
            read(llm, changed)
            taken += 1
        except (InvalidRequestError, TemplateError):
            continue
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {changed}") from error
    assert 0 < taken < REQUESTS


def test_odd_values_of_python_callers_are_taken_or_named(llm: LLM) -> None:
    source = random.Random("python")
    options = {key: CHAT[key] for key in ("tools", "tool_choice", "parallel_tool_calls")}
    for _ in range(REQUESTS):
        changed = altered({"messages": CHAT["messages"], **options}, source, ODD + NOT_JSON)
        sampling = altered({"logprobs": 1, **SAMPLING, "logit_bias": {5: 1.0}}, source, ODD + NOT_JSON)
        sampling = {key: value for key, value in sampling.items() if key in SamplingParams.__dataclass_fields__}
        for call in (
            lambda changed=changed: llm.prepare(ChatRequest.of(changed.pop("messages", None), **changed)),
            lambda sampling=sampling: SamplingParams(**sampling),
        ):
            try:
                call()
            except Glm4Error:
                continue
            except Exception as error:
                if "unknown option" not in str(error):  # a TypeError: the name of an option was changed
                    raise AssertionError(f"{type(error).__name__} from {changed} {sampling}") from error
