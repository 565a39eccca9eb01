"""Golden prompts of every dialect. A dialect without a golden file fails here.

Ids of the GLM dialects are GLM-4's real ones. The first five conversations of `glm4.json` and its plain encodings come
from the real vocabulary through other software; everything else was checked against Transformers' renderer once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.chat.dialects.table import DIALECTS
from glm4.chat.template.template import ChatTemplate
from glm4.tokenizer import Tokenizer
from rendering import render, render_text
from vocabularies import installed_gguf, tiny_chatml

FOLDER = Path(__file__).parents[1] / "golden/prompts"
PUBLISHED = Path(__file__).parents[1] / "golden/templates/glm-4-9b-chat.jinja"
CASES = [
    (name, case)
    for name in DIALECTS
    for case in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["conversations"]
]


def golden(dialect: str, case: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{dialect}.json").read_text(encoding="utf-8"))["conversations"][case]


def tokenizer_of(dialect: str, request: pytest.FixtureRequest) -> Tokenizer:
    return tiny_chatml() if dialect == "chatml" else request.getfixturevalue("glm4")


@pytest.mark.parametrize(("dialect", "case"), CASES)
def test_golden(dialect: str, case: str, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(dialect, request)
    expected = golden(dialect, case)
    arguments: dict[str, Any] = {"tools": expected.get("tools", ()), "tokenizer": tokenizer}
    assert render_text(DIALECTS[dialect], expected["messages"], **arguments) == expected["text"]
    assert render(DIALECTS[dialect], expected["messages"], **arguments) == expected["ids"]


@pytest.mark.parametrize("case", [case for dialect, case in CASES if dialect == "glm4"])
@pytest.mark.parametrize("name", ["ChatGLM", "GLM-4"])
def test_published_glm4_templates(glm4: Tokenizer, case: str, name: str) -> None:
    """The published template, rendered in our sandbox, says the same as ours; June 2024's calls the model GLM-4."""
    expected = golden("glm4", case)
    published = PUBLISHED.read_text(encoding="utf-8")
    assert published.count("你是一个名为 ChatGLM 的") == 1
    template = ChatTemplate(published.replace("你是一个名为 ChatGLM 的", f"你是一个名为 {name} 的"))
    text = render_text(
        DIALECTS["glm4"], expected["messages"], tools=expected.get("tools", ()), tokenizer=glm4, template=template
    )
    assert text == expected["text"].replace("你是一个名为 ChatGLM 的", f"你是一个名为 {name} 的")


@pytest.mark.starter
@pytest.mark.parametrize("case", [case for dialect, case in CASES if dialect == "chatml"])
def test_published_qwen_template(case: str) -> None:
    """The starter's own template says the same as ours where a system message is given."""
    template = ChatTemplate(installed_gguf("starter")["tokenizer.chat_template"])
    expected = golden("chatml", case)
    messages = [m for m in expected["messages"] if m["role"] != "system"]
    messages.insert(0, {"role": "system", "content": "Be brief."})
    arguments: dict[str, Any] = {"tools": expected.get("tools", ()), "tokenizer": tiny_chatml()}
    arguments["dialect"] = DIALECTS["chatml"]
    assert render(messages=messages, template=template, **arguments) == render(messages=messages, **arguments)
