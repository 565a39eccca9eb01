"""Two prefix adapters beside LoRA on one server, asked through OpenAI's client: each answers as it does alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import live
from adapter_files import factors, write_adapter
from glm4 import LLM, SamplingParams
from glm4.server.config import ModelSpec, ServerConfig
from prefix_files import write_prefix
from tiny import write_folder

CONTEXT = 256
LENGTHS = {"poems": 40, "rhymes": 5}
SERVED = (*LENGTHS, "lora")
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("files")
    model = write_folder(parent / "model")
    with LLM(str(model), dtype="fp32", max_model_len=64) as llm:
        config = llm.backend.model.config  # type: ignore[attr-defined]
    made = {name: write_prefix(parent / name, config, count, count) for name, count in LENGTHS.items()}
    made["later"] = write_prefix(parent / "later", config, 33, 33)
    made["dora"] = write_adapter(parent / "dora", factors(config), {"peft_type": "LORA", "use_dora": True})
    return {**made, "lora": write_adapter(parent / "lora", factors(config, 1)), "model": model}


@pytest.fixture(scope="module")
def server(files: dict[str, Path]) -> Iterator[live.LiveServer]:
    options = {"dtype": "fp32", "max_model_len": CONTEXT, "max_num_seqs": 8}
    spec = ModelSpec(str(files["model"]), ("tiny",), options, {name: files[name] for name in SERVED})
    with live.serve(ServerConfig((spec,), allow_adapter_loading=True)) as running:
        yield running


@pytest.fixture
def client(server: live.LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def text(client: openai.OpenAI, model: str) -> tuple[str, int, int]:
    """An answer, and what it says of its length."""
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert answer.model == model
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens, answer.usage.completion_tokens


def test_each_name_answers_as_alone_whoever_asks_beside_it(server: live.LiveServer, client: openai.OpenAI) -> None:
    names = ("tiny", *SERVED)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    expected = {name: server.llm.chat(MESSAGES, params, adapter=None if name == "tiny" else name)[0] for name in names}
    assert len({tuple(one.outputs[0].token_ids) for one in expected.values()}) == 4
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda name: text(client, name), names * 3))
    for name, (content, prompt_tokens, completion_tokens) in zip(names * 3, found, strict=True):
        assert content == expected[name].outputs[0].text
        assert prompt_tokens == len(expected[name].prompt_token_ids), "without virtual tokens"
        assert completion_tokens == 12


def test_cached_tokens_are_those_of_the_prompt(client: openai.OpenAI) -> None:
    prompt = "a text that is longer than some pages. " * 4
    for cached in (0, (40 + len(prompt) + 2 - 1) // 32 * 32 - 40):
        answer = client.completions.create(model="poems", prompt=prompt, max_tokens=1, temperature=0)
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        assert details is not None
        assert (answer.usage.prompt_tokens, details.cached_tokens) == (len(prompt) + 2, cached)


def test_what_is_said_of_a_prefix(client: openai.OpenAI) -> None:
    lengths = {
        model.id: (model.model_dump()["max_model_len"], model.model_dump()["parent"]) for model in client.models.list()
    }
    assert lengths == {
        "tiny": (CONTEXT, None), "poems": (CONTEXT - 40, "tiny"), "rhymes": (CONTEXT - 5, "tiny"),
        "lora": (CONTEXT, "tiny"),
    }  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="beside the 40 virtual tokens of the adapter") as caught:
        client.completions.create(model="poems", prompt=[65] * 230, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    client.completions.create(model="rhymes", prompt=[65] * 230, max_tokens=1)


def test_one_is_loaded_and_unloaded_while_the_server_runs(
    server: live.LiveServer, client: openai.OpenAI, files: dict[str, Path]
) -> None:
    def post(path: str, **body: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)

    plain = text(client, "tiny")
    loaded = post("load_lora_adapter", lora_name="later", lora_path=str(files["later"]))
    assert (loaded.status_code, loaded.text) == (200, "Success: prefix adapter 'later' added successfully.")
    assert text(client, "later")[0] != plain[0]
    unloaded = post("unload_lora_adapter", lora_name="later")
    assert (unloaded.status_code, unloaded.text) == (200, "Success: prefix adapter 'later' removed successfully.")
    with pytest.raises(openai.NotFoundError):
        text(client, "later")
    refused = post("load_lora_adapter", lora_name="dora", lora_path=str(files["dora"]))
    assert refused.status_code == 400
    assert text(client, "tiny") == plain
