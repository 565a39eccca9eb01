"""The OpenAPI document is complete, and the server does what it says: requests made from it, answers checked by it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import jsonschema
import messages_client
import openai_schema
import pytest
import requests
import schemathesis
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from glm4.api.openai.fields import read_fields
from glm4.errors import InvalidRequestError
from glm4.server.agent.app import OPERATIONS as AGENT
from glm4.server.app import create_app
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.openapi import OPENAPI_JSON, OpenAPI
from glm4.server.routes import ADAPTERS, API
from glm4.server.state import find_state
from live import LiveServer, config, serve
from tiny import write_folder

NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
# Per cent of the examples, by operation; those that take nothing have one only.
SHARES = {
    "post /v1/chat/completions": 18,
    "post /v1/completions": 15,
    "post /inference/v1/generate": 5,
    "post /v1/responses": 13,
    "post /v1/messages": 13,
    "post /v1/embeddings": 6,
    "post /tokenize": 6,
    "post /detokenize": 4,
    "post /v1/chat/completions/render": 4,
    "post /v1/responses/input_tokens": 4,
    "post /v1/messages/count_tokens": 3,
    "post /v1/load_lora_adapter": 1,
    "post /v1/unload_lora_adapter": 1,
    "get /v1/models/{model}": 1,
    "get /tokenizer_info": 1,
    "get /v1/responses/{response_id}": 1,
    "delete /v1/responses/{response_id}": 1,
    "post /v1/responses/{response_id}/cancel": 1,
    "get /v1/responses/{response_id}/input_items": 2,
}
SEEDS = {"post /tokenize": 5}
"""Of examples; with the one of the others, no example of these is valid."""
LOADING = ServerConfig((ModelSpec("m", ("m",)),), allow_adapter_loading=True)


OPERATIONS = (*API, *ADAPTERS, OPENAPI_JSON)


def document(config: ServerConfig) -> dict[str, Any]:
    return find_state(create_app(config), OpenAPI).document


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A real random model; its short context bounds what a request can cost."""
    folder = write_folder(tmp_path_factory.mktemp("model") / "m")
    options = {"max_model_len": 48, "max_num_seqs": 8, "dtype": "fp32"}
    spec = ModelSpec(str(folder), ("tiny",), options)
    with serve(ServerConfig((spec,), allow_adapter_loading=True)) as running:
        yield running


@pytest.fixture(scope="module")
def told(server: LiveServer) -> dict[str, Any]:
    """The document as a client gets it."""
    with server.client() as client:
        return client.get("/openapi.json").json()


def component(told: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": told["components"]})


# The document


def test_every_operation_is_described_and_nothing_else() -> None:
    operations = {(operation.method, operation.shown_path) for operation in (*OPERATIONS, *AGENT)}
    described = {(method, path) for path, methods in document(LOADING)["paths"].items() for method in methods}
    assert described == operations
    assert len(OPERATIONS) + len(AGENT) == len(described)


def test_adapters_are_described_only_where_they_can_be_loaded() -> None:
    paths = document(config())["paths"]
    assert not [path for path in paths if "lora" in path]
    assert [path for path in document(LOADING)["paths"] if "lora" in path]


def test_keys_are_asked_for_where_they_are_needed() -> None:
    paths = document(config(api_keys=("a-secret-key",)))["paths"]
    assert paths["/v1/completions"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert "401" in paths["/v1/completions"]["post"]["responses"]
    assert paths["/health"]["get"]["security"] == []
    assert "401" not in paths["/health"]["get"]["responses"]
    assert document(config())["paths"]["/v1/completions"]["post"]["security"] == []


def test_the_document_is_well_formed(told: dict[str, Any]) -> None:
    assert told == json.loads(json.dumps(document(LOADING), allow_nan=False))
    assert told["openapi"] == "3.1.0"
    for name, schema in told["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("type") == "object" or "anyOf" in schema, name
    known = set(told["components"]["schemas"])
    used = {part.removeprefix("#/components/schemas/") for part in references(told)}
    assert used <= known
    assert known == used
    identifiers = [operation["operationId"] for methods in told["paths"].values() for operation in methods.values()]
    assert len(set(identifiers)) == len(identifiers)
    for methods in told["paths"].values():
        for operation in methods.values():
            assert {"421", "500"} <= set(operation["responses"])
            assert "200" in operation["responses"]
            for status, answer in operation["responses"].items():
                assert answer["description"]
                assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "$ref":
                yield one
            else:
                yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.body is not None], ids=lambda operation: operation.path
)
def test_examples_and_required_fields_are_right(operation: Any) -> None:
    schema = document(LOADING)["paths"][operation.shown_path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(operation.example, schema)
    read_fields(operation.example, operation.body)
    assert set(operation.required) <= set(operation.body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**operation.example, "no_such_field": 1}, schema)
    with pytest.raises(InvalidRequestError):
        read_fields({"no_such_field": 1}, operation.body)


def test_examples_are_answered(server: LiveServer) -> None:
    with server.client() as client:
        for operation in OPERATIONS:
            if operation.example is not None and "lora" not in operation.path:
                answer = client.post(operation.path, json={**operation.example, "max_tokens": 3})
                if "max_tokens" not in (operation.body or {}):
                    answer = client.post(operation.path, json=dict(operation.example))
                assert answer.status_code == 200, (operation.path, answer.text)


# The server against the document


def fuzz(server: LiveServer, told: dict[str, Any], name: str, mode: Any, examples: int, seed: int) -> Counter[int]:
    """Send requests made from the document to one operation and check every answer; counts them by status.

    Args:
        mode: a `GenerationMode`, whose members mypy takes for plain strings (a StrEnum, which Python 3.10 lacks).
    """
    method, path = name.split()
    schema = schemathesis.openapi.from_dict(told)
    checks: Any = CHECKS.get_by_names(list(NAMES))
    further = body_check(told, method, path)
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        def send(case: schemathesis.Case[Any]) -> None:
            keep_small(case.body)
            # Not `case.call`, which hangs up in the middle of a long stream.
            response = session.request(**case.as_transport_kwargs(base_url=server.url), timeout=60)
            case.validate_response(response, checks=checks)
            further(response)
            statuses[response.status_code] += 1

        strategy: st.SearchStrategy[Any] = schema[path][method.upper()].as_strategy(mode)
        options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        with_seed(seed)(options(given(strategy)(send)))()
    return statuses


def keep_small(body: Any) -> None:
    """Ask for few samples; a hundred of them show nothing more and take a hundred times as long."""
    for name in ("n", "best_of"):
        if isinstance(body, dict) and isinstance(body.get(name), int) and body[name] > 3:
            body[name] = 3


def check_beta_stream(text: str) -> list[Any]:
    return messages_client.check_stream(text, BetaRawMessageStreamEvent)


def body_check(told: dict[str, Any], method: str, path: str) -> Callable[[Any], None]:
    """Checks what the document's own checks do not reach: events of streams, and OpenAI's types."""
    whole, stream = OPENAI_CHECKS.get(path, (None, None))
    answer = told["paths"][path][method]["responses"].get("200", {"content": {}})
    chunk: jsonschema.Draft202012Validator | None = None
    if "text/event-stream" in answer["content"]:
        data = answer["content"]["text/event-stream"]["schema"]["properties"]["data"]
        (chunk_schema, _) = data["anyOf"][1]["contentSchema"]["anyOf"]
        chunk = component(told, chunk_schema["$ref"].rpartition("/")[2])

    def check(response: Any) -> None:
        body = response.content.decode()
        if response.status_code != 200:
            if path.startswith("/v1/messages"):
                messages_client.check_error(json.loads(body))
            elif path not in ("/health", "/ready"):
                openai_schema.check_error(json.loads(body))
        elif response.headers["content-type"].startswith("text/event-stream"):
            assert chunk is not None
            for data in openai_schema.events(body):
                if data != "[DONE]":
                    chunk.validate(json.loads(data))
            if stream is not None:
                stream(body)
        elif whole is not None:
            whole(json.loads(body))

    return check


OPENAI_CHECKS: dict[str, tuple[Callable[[Any], Any] | None, Callable[[str], Any] | None]] = {
    "/v1/chat/completions": (openai_schema.check_chat_completion, openai_schema.check_chat_stream),
    "/v1/completions": (openai_schema.check_completion, openai_schema.check_completion_stream),
    "/v1/messages": (partial(messages_client.check, BetaMessage), check_beta_stream),
    "/v1/messages/count_tokens": (partial(messages_client.check, BetaMessageTokensCount), None),
    "/v1/responses": (openai_schema.check_response, openai_schema.check_response_stream),
    "/v1/responses/input_tokens": (openai_schema.check_input_tokens, None),
    "/v1/embeddings": (openai_schema.check_embeddings, None),
    "/v1/models/{model}": (openai_schema.check_model, None),
}
NAMED = {f"{operation.method} {operation.shown_path}": operation for operation in OPERATIONS}


@pytest.mark.parametrize("name", NAMED)
def test_the_server_does_what_its_document_says(server: LiveServer, told: dict[str, Any], name: str) -> None:
    """About 300 examples in all; every operation that needs no luck must have answered some of them."""
    share = SHARES.get(name, 1)
    statuses = fuzz(server, told, name, GenerationMode.POSITIVE, 2 * share, seed=SEEDS.get(name, 1))
    if NAMED[name].body is not None:
        fuzz(server, told, name, GenerationMode.NEGATIVE, share, seed=2)
    if "{" not in name and "lora" not in name and "info" not in name:
        assert statuses[200]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SHARES)
def test_5000_examples(server: LiveServer, told: dict[str, Any], name: str) -> None:
    share = SHARES[name] * 50
    negative = share // 3 if NAMED[name].body is not None else 0
    statuses = fuzz(server, told, name, GenerationMode.POSITIVE, share - negative, seed=3)
    if negative:
        statuses += fuzz(server, told, name, GenerationMode.NEGATIVE, negative, seed=4)
    print(f"{name}: {statuses.total()} requests, {dict(statuses)}")
    assert statuses.total() >= share


def test_the_shares_are_5000_examples() -> None:
    assert sum(SHARES.values()) * 50 == 5000
    assert set(SHARES) <= set(NAMED)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_of_ids_without_a_token_is_echoed_as_nothing(server: LiveServer, stream: bool) -> None:
    """The vocabulary has more rows than tokens, and a prompt of ids may name any row."""
    body = {"prompt": [97, 280, 98], "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    with server.client() as client:
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200
        if stream:
            chunks = openai_schema.check_completion_stream(answer.text)
        else:
            chunks = [openai_schema.check_completion(answer.json())]
        assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
        native = client.post("/completion", json={"prompt": [97, 280, 98], "n_predict": 1})
        assert native.json()["prompt"] == "ab"


def test_after_all_that_the_server_is_well(server: LiveServer) -> None:
    with server.client() as client:
        body = {"prompt": "abc", "max_tokens": 3, "temperature": 0}
        first, second = (client.post("/v1/completions", json=body).json() for _ in range(2))
        assert first["choices"] == second["choices"]
        assert client.get("/health").json() == {"status": "ok"}
    while server.llm.has_unfinished_requests():
        time.sleep(0.01)


def test_every_get_of_the_document_answers_with_its_schema(server: LiveServer, told: dict[str, Any]) -> None:
    with server.client() as client:
        stored = client.post("/v1/responses", json={"input": "a"}).json()["id"]
        for operation in OPERATIONS:
            if operation.method == "get":
                path = operation.shown_path.replace("{model}", "tiny").replace("{response_id}", stored)
                answer: httpx.Response = client.get(path)
                assert answer.status_code == 200
                if operation.answer in told["components"]["schemas"]:
                    component(told, operation.answer).validate(answer.json())
