"""Exported files in llama-server: tools through their chat template, and LoRA adapters.

GLM4_LLAMA_CPP=BUILD/bin pytest -m peers tests/peers/test_llama_chat.py
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, settings, write_adapter
from glm4 import LLM, SamplingParams
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message, ToolCall
from glm4.chat.template.template import default_template
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.requests.processor import Processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "export"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported import export, glm_folder
from llama_binaries import llama_server, needs_llama_cpp, post

pytestmark = needs_llama_cpp

PUBLISHED = (Path(__file__).parents[1] / "golden/templates/glm-4-9b-chat.jinja").read_text(encoding="utf-8")
PARAMETERS = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "查询天气", "parameters": PARAMETERS},
}
CALL = '{"unit": "C"}'
SYSTEM = {"role": "system", "content": "简短回答。"}
FOREIGN: list[dict[str, Any]] = [
    {"role": "user", "content": "北京 天气?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": CALL}}]},
    {"role": "tool", "tool_call_id": "1", "content": "晴, 21 °C"},
    {"role": "assistant", "content": "Sunny & warm <b>."},
    {"role": "user", "content": "上海?"},
]  # fmt: skip
OURS = (
    Message("user", "北京 天气?"),
    Message("assistant", "", tool_calls=(ToolCall("1", "weather", CALL),)),
    Message("tool", "晴, 21 °C", tool_call_id="1"),
    Message("assistant", "Sunny & warm <b>."),
    Message("user", "上海?"),
)
# Source of the template -> what `glm_folder` makes.
MODELS: dict[str, dict[str, Any]] = {
    "glm4": {"layout": "chatglm", "template": None},
    "published": {"layout": "chatglm", "template": PUBLISHED},
    "glm4_0414": {"architecture": "glm4", "template": None},
    "glm_z1": {"architecture": "glm4", "template": default_template("glm_z1").source},
}


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address of the server, the source of its model)."""
    folder = tmp_path_factory.mktemp("served")
    source = glm_folder(folder / "m", **MODELS[request.param])
    export(source, folder / "m.gguf", "f32")
    # GLM-Z1's prompt begins its thinking, which random weights would never end.
    with llama_server(folder / "m.gguf", "--jinja", "--reasoning-budget", "0", context=4096) as address:
        yield address, source


@pytest.mark.parametrize("tools", [(), (TOOL,), (TOOL, {**TOOL, "function": {**TOOL["function"], "name": "other"}})])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_prompt_is_ours(served: tuple[str, Path], tools: tuple[Any, ...], system: bool, count: int) -> None:
    address, source = served
    messages = ([SYSTEM] if system else []) + FOREIGN[:count]
    body = {"messages": messages, **({"tools": list(tools)} if tools else {})}
    ours = ((Message("system", SYSTEM["content"]),) if system else ()) + OURS[:count]
    with open_checkpoint(source) as checkpoint:
        wanted = Processor.load(checkpoint).render_text(ChatRequest(messages=ours, tools=tools))
    assert post(address + "/apply-template", body)["prompt"] == wanted


def test_the_template_is_recognized_as_one_with_tools(served: tuple[str, Path]) -> None:
    with urllib.request.urlopen(served[0] + "/props", timeout=60) as answer:
        able = json.load(answer)["chat_template_caps"]
    assert able["supports_tools"]
    assert able["supports_tool_calls"]


def test_a_required_call_is_a_call(served: tuple[str, Path]) -> None:
    """On random weights: whatever the model wants, the server's grammar and its reading of the answer fit together."""
    address, _ = served
    body = {"messages": FOREIGN[:1], "tools": [TOOL], "tool_choice": "required", "max_tokens": 400, "seed": 1}
    answer = post(address + "/v1/chat/completions", body)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["unit"] in ("C", "F")


ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "attention": {"targets": ("q_proj", "v_proj", "o_proj")},
    "rank-stabilized": {"changes": {"use_rslora": True}},
    "alphas by module": {"changes": {"alpha_pattern": {"down_proj": 20, "k_proj": 2}}},
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_an_adapter_gives_our_ids_and_at_scale_0_the_models(architecture: str, name: str, tmp_path: Path) -> None:
    options = ADAPTERS[name]
    source = glm_folder(tmp_path / "m", architecture=architecture, rope_theta=5e6)
    targets = options.get("targets", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"))
    with open_checkpoint(source) as checkpoint:
        made = factors(checkpoint.config, 3, targets)
    adapter = write_adapter(tmp_path / "adapter", made, settings(targets, **options.get("changes", {})))
    export(source, tmp_path / "m.gguf", "f32")
    export(source, tmp_path / "a.gguf", "f32", lora=adapter)
    prompts = [np.random.default_rng(seed).integers(0, 250, length).tolist() for seed, length in ((1, 9), (2, 200))]
    with open_checkpoint(source) as checkpoint:
        stops = Processor.load(checkpoint).stop_ids  # llama-server never samples these with `ignore_eos`
    banned = dict.fromkeys(stops, -100.0)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logit_bias=banned)
    with LLM(str(source), dtype="fp32") as llm:
        llm.load_adapter("mine", str(adapter))
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        wanted = {
            scale: [list(one.outputs[0].token_ids) for one in llm.generate(inputs, params, adapter=used)]
            for scale, used in ((1.0, "mine"), (0.0, None))
        }
        unnamed = llm.tokenizer.unnamed_ids(288).tolist()
    assert wanted[0.0] != wanted[1.0]
    found: dict[float, list[list[int]]] = {}
    with llama_server(tmp_path / "m.gguf", "--lora", str(tmp_path / "a.gguf")) as address:
        with urllib.request.urlopen(address + "/lora-adapters", timeout=60) as answer:
            assert len(json.load(answer)) == 1
        for scale in wanted:
            body = {
                "temperature": 0, "n_predict": 16, "ignore_eos": True, "cache_prompt": False, "return_tokens": True,
                "lora": [{"id": 0, "scale": scale}], "logit_bias": [[token, False] for token in unnamed],
            }  # fmt: skip
            found[scale] = [post(address + "/completion", {**body, "prompt": prompt})["tokens"] for prompt in prompts]
    assert found == wanted
