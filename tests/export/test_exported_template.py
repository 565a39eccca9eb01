"""The template of an exported file: tools and calls as llama.cpp passes them give the prompt our dialects write."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from exported import export, glm_folder, keys_of

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import dialect_for
from glm4.chat.messages import Message, ToolCall
from glm4.chat.template.template import ChatTemplate, default_template
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.chat_template import exported_template
from glm4.requests.processor import Processor
from glm4.tokenizer import Tokenizer, load_tokenizer
from tiny import CHATML_TEMPLATE, GLM_TEMPLATE
from vocabularies import glm4_gguf

PUBLISHED = Path(__file__).parents[1] / "golden/templates/glm-4-9b-chat.jinja"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}},
}
CALL = '{"city": "北京"}'
# What a program passes in OpenAI's form.
FOREIGN: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "北京?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": CALL}}]},
    {"role": "tool", "content": "21 °C"},
    {"role": "assistant", "content": "Warm."},
    {"role": "user", "content": "上海?"},
]
MESSAGES = [
    Message("system", "Be brief."),
    Message("user", "北京?"),
    Message("assistant", "", tool_calls=(ToolCall("1", "weather", CALL),)),
    Message("tool", "21 °C", tool_call_id="1"),
    Message("assistant", "Warm."),
    Message("user", "上海?"),
]
TEMPLATES = {
    "glm4": default_template("glm4").source,
    "glm4_0414": default_template("glm4_0414").source,
    "glm_z1": default_template("glm_z1").source,
    "published": PUBLISHED.read_text(encoding="utf-8"),
}


@lru_cache(maxsize=1)
def vocabulary() -> Tokenizer:
    return load_tokenizer(None, gguf_metadata=glm4_gguf())


def exported_text(name: str) -> str:
    return exported_template(ChatTemplate(TEMPLATES[name]), on_message=name in ("glm4", "published"))


def rendered(text: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    return ChatTemplate(text).render({"messages": messages, "add_generation_prompt": True, **variables})


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("as_object", [True, False])
def test_tools_and_calls_in_the_form_of_other_programs(name: str, system: bool, as_object: bool) -> None:
    dialect = dialect_for("glm4" if name == "published" else name)
    start = 0 if system else 1
    foreign = json.loads(json.dumps(FOREIGN[start:]))
    if as_object:
        foreign[2 - start]["tool_calls"][0]["function"]["arguments"] = json.loads(CALL)
    request = ChatRequest(messages=tuple(MESSAGES[start:]), tools=(TOOL,))
    wanted = dialect.render_text(request, tokenizer=vocabulary(), template=ChatTemplate(TEMPLATES[name]))
    assert "可用工具" in wanted
    assert "<|observation|>\n21 °C" in wanted
    assert rendered(exported_text(name), foreign, tools=[TOOL]) == wanted
    # and this package passes GLM's form to the same text
    own = dialect.render_text(request, tokenizer=vocabulary(), template=ChatTemplate(exported_text(name)))
    assert own == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_conversations_are_as_before(name: str) -> None:
    messages = [FOREIGN[0], FOREIGN[1], FOREIGN[4], FOREIGN[5]]
    assert rendered(exported_text(name), messages) == rendered(TEMPLATES[name], messages)
    assert rendered(exported_text(name), messages[1:]) == rendered(TEMPLATES[name], messages[1:])


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_ollama_looks_for(name: str) -> None:
    text = exported_text(name)
    assert "message.tool_calls" in text
    assert "message.role == 'tool'" in text


@pytest.mark.parametrize("source", [GLM_TEMPLATE, CHATML_TEMPLATE, default_template("chatml").source])
def test_others_stay_as_they_are(source: str) -> None:
    assert exported_template(ChatTemplate(source), on_message=True) == source


def test_the_file_has_it(tmp_path: Path) -> None:
    """Also for a checkpoint without a template of its own: the dialect's."""
    export(glm_folder(tmp_path / "m", template=None), tmp_path / "out.gguf")
    assert keys_of(tmp_path / "out.gguf")["tokenizer.chat_template"] == exported_text("glm4")
    with open_checkpoint(tmp_path / "m") as first, open_checkpoint(tmp_path / "out.gguf") as second:
        a, b = Processor.load(first), Processor.load(second)
        request = ChatRequest(messages=tuple(MESSAGES), tools=(TOOL,))
        assert b.render(request).ids == a.render(request).ids
        plain = replace(request, tools=())
        assert b.render(plain).ids == a.render(plain).ids
