"""Validates what a server answers with the types of OpenAI's client library, which are made from its published schema.

Strictly: a number in a string is a fault, and so is a field that neither OpenAI nor the list below knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic import BaseModel, TypeAdapter

from glm4.chat.dialects.glm4 import RAW_TOOLS

# What we (and vLLM, whose names these are) say beyond OpenAI.
BEYOND = {
    "ChatCompletion": {"metadata", "prompt_logprobs", "prompt_token_ids"},
    "Choice": {"stop_reason", "token_ids"},
    "ChatCompletionMessage": {"reasoning_content"},
    "ChatCompletionChunk": {"metadata", "prompt_token_ids"},
    "ChoiceDelta": {"reasoning_content"},
    "Completion": {"metadata", "prompt_logprobs", "prompt_token_ids"},
    "CompletionChoice": {"stop_reason", "token_ids", "prompt_token_ids"},
    "Model": {"root", "parent", "max_model_len"},
    "Logprob": {"bytes"},  # of a stream's events, which have less of it than whole responses
    "LogprobTopLogprob": {"bytes"},
    "Response": {"store"},  # OpenAI's service says it, too; its schema does not
}


def check_chat_completion(body: object) -> ChatCompletion:
    """A whole answer of /v1/chat/completions."""
    return _check(ChatCompletion, body)


def check_chat_chunk(body: object) -> ChatCompletionChunk:
    """One chunk of a streamed one."""
    return _check(ChatCompletionChunk, body)


def check_completion(body: object) -> Completion:
    """A whole answer of /v1/completions, or one chunk of a streamed one."""
    return _check(Completion, _without_nulls(body))


def check_embeddings(body: Any) -> CreateEmbeddingResponse:
    """An answer of /v1/embeddings."""
    # The type has the vector as the SDK hands it on; base64 is decoded before.
    data = [row | {"embedding": []} if isinstance(row["embedding"], str) else row for row in body["data"]]
    return _check(CreateEmbeddingResponse, body | {"data": data})


def check_model(body: object) -> Model:
    """An entry of /v1/models."""
    return _check(Model, body)


def check_response(body: object) -> Response:
    """A `response` object."""
    return _check(Response, _without_own_tools(body))


def check_response_items(body: object) -> ResponseItemList:
    """A page of a response's input items."""
    return _check(ResponseItemList, body)


def check_input_tokens(body: object) -> InputTokenCountResponse:
    """A count of a prompt's tokens."""
    return _check(InputTokenCountResponse, body)


def check_response_event(body: Any) -> Any:
    """One event of a streamed response."""
    if "response" in body:
        body = body | {"response": _without_own_tools(body["response"])}
    checked = _EVENT.validate_python(body, strict=True)
    _check_extras(checked)
    return checked


def check_response_stream(text: str) -> list[Any]:
    """The whole stream of a response: types, names, numbers; OpenAI ends it without a mark."""
    checked = [check_response_event(json.loads(data)) for data in events(text)]
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    assert [event.type for event in checked] == names
    assert [event.sequence_number for event in checked] == list(range(len(checked)))
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] in ("response.completed", "response.incomplete", "response.failed"), text[-3000:]
    return checked


def check_error(body: Any) -> None:
    """OpenAI's error body: four keys, always."""
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))


def check_chat_stream(text: str) -> list[ChatCompletionChunk]:
    """The whole stream of a chat answer: its chunks, the end marker left out."""
    return [check_chat_chunk(chunk) for chunk in _chunks(text)]


def check_completion_stream(text: str) -> list[Completion]:
    """The whole stream of a text completion."""
    return [check_completion(chunk) for chunk in _chunks(text)]


def events(text: str) -> Iterator[str]:
    """The data of server-sent events."""
    assert text.endswith("\n\n")
    for block in text.split("\n\n")[:-1]:
        lines = block.split("\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert all(line.startswith((": ", "data: ", "event: ")) for line in lines), lines
        if data:
            yield "\n".join(data)


def _chunks(text: str) -> Iterable[Any]:
    *chunks, done = events(text)
    assert done == "[DONE]", done
    return [json.loads(chunk) for chunk in chunks]


_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def _without_own_tools(body: Any) -> Any:
    """Tools that GLM-4 knows and OpenAI does not are beyond its types."""
    return body | {"tools": [tool for tool in body["tools"] if tool["type"] not in RAW_TOOLS]}


def _check(kind: type[Any], body: object) -> Any:
    checked = kind.model_validate(body, strict=True)
    _check_extras(checked)
    return checked


def _check_extras(value: object) -> None:
    """Refuse fields that neither the types nor `BEYOND` have."""
    if isinstance(value, BaseModel):
        name = type(value).__name__
        unknown = set(value.model_extra or ()) - BEYOND.get(name, set())
        assert not unknown, f"{name} has fields of nobody: {unknown}"
        for field in type(value).model_fields:
            _check_extras(getattr(value, field))
    elif isinstance(value, list):
        for one in value:
            _check_extras(one)


def _without_nulls(body: Any) -> Any:
    """Fills in what OpenAI's service sends as null and its type calls required.

    In a stream, finish_reason is null until the end; with echo, the first token has no log-probability.
    """

    def choice(one: dict[str, Any]) -> dict[str, Any]:
        logprobs = one["logprobs"]
        if logprobs is not None:
            assert all(value is not None for value in logprobs["token_logprobs"][1:])
            logprobs = logprobs | {
                "token_logprobs": [0.0 if value is None else value for value in logprobs["token_logprobs"]],
                "top_logprobs": [{} if value is None else value for value in logprobs["top_logprobs"]],
            }
        return one | {"finish_reason": one["finish_reason"] or "stop", "logprobs": logprobs}

    return body | {"choices": [choice(one) for one in body["choices"]]}
