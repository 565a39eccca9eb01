"""The anthropic library: two turns, tools side by side, typed answers."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from common import FIRST, KEY, QUESTION, REPORT, SCRIPTED, SECOND, STARTER, UNBOUNDED, form, measure, said
from pydantic import BaseModel

TOOL: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def connect(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=120)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("dumped", [False, True])
def test_two_turns(dumped: bool) -> None:
    client = connect(SCRIPTED)
    first = client.messages.create(model="scripted", max_tokens=200, messages=[user(FIRST)])
    content: Any = [block.model_dump() for block in first.content] if dumped else first.content
    second = client.messages.create(
        model="scripted",
        max_tokens=200,
        messages=[user(FIRST), {"role": "assistant", "content": content}, user(SECOND)],
    )
    assert second.content[0].text == said(FIRST, said(FIRST), SECOND)


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_answered_out_of_order(streamed: bool) -> None:
    client = connect(SCRIPTED)
    options: Any = {"model": "scripted", "max_tokens": 400, "tools": [TOOL]}
    if streamed:
        with client.messages.stream(messages=[user(QUESTION)], **options) as stream:
            first = stream.get_final_message()
    else:
        first = client.messages.create(messages=[user(QUESTION)], **options)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": measure(block.input["city"])}
        for block in first.content
        if block.type == "tool_use"
    ]
    assert len(results) == 2
    turns = [user(QUESTION), {"role": "assistant", "content": first.content}, user(results[::-1])]
    assert client.messages.create(messages=turns, **options).content[0].text == REPORT


@pytest.mark.parametrize("kind", UNBOUNDED, ids=lambda kind: kind.__name__)
def test_typed_answer(kind: type[BaseModel]) -> None:
    answer = connect(STARTER).messages.parse(
        model="starter", max_tokens=400, extra_body={"temperature": 0}, messages=[user(form(kind))], output_format=kind
    )
    assert isinstance(answer.parsed_output, kind), answer.content
