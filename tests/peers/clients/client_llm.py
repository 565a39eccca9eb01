"""Simon Willison's llm, configured as its documentation says for a server that speaks OpenAI's API."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from common import FIRST, KEY, QUESTION, REPORT, SCRIPTED, SECOND, STARTER, TYPED, form, measure, said
from pydantic import BaseModel


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home: Path = tmp_path_factory.mktemp("llm")
    (home / "extra-openai-models.yaml").write_text(
        "".join(
            f"- model_id: {name}\n  model_name: {name}\n  api_base: {url}/v1\n  api_key_name: glm4\n"
            "  supports_tools: true\n  supports_schema: true\n"
            for name, url in (("scripted", SCRIPTED), ("starter", STARTER))
        )
    )
    (home / "keys.json").write_text(json.dumps({"glm4": KEY}))
    os.environ["LLM_USER_PATH"] = str(home)
    import llm

    return llm


@pytest.mark.parametrize("streamed", [True, False])
def test_a_conversation(llm: Any, streamed: bool) -> None:
    conversation = llm.get_model("scripted").conversation()
    assert conversation.prompt(FIRST, stream=streamed).text() == said(FIRST)
    assert conversation.prompt(SECOND, stream=streamed).text() == said(FIRST, said(FIRST), SECOND)


def test_tools(llm: Any) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return measure(city)

    conversation = llm.get_model("scripted").conversation(tools=[get_weather])
    assert conversation.chain(QUESTION).text() == REPORT
    assert conversation.prompt(SECOND).text() == said(QUESTION, REPORT, SECOND)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_answer(llm: Any, kind: type[BaseModel]) -> None:
    answer = llm.get_model("starter").prompt(form(kind), schema=kind, temperature=0, max_tokens=400)
    kind.model_validate_json(answer.text())
