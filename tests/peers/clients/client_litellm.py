"""litellm, through its OpenAI and Anthropic routes."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from common import FIRST, KEY, QUESTION, REPORT, SCRIPTED, SECOND, STARTER, TYPED, form, measure, said
from pydantic import BaseModel

litellm.telemetry = False
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ROUTES = ["openai", "hosted_vllm", "anthropic"]


def ask(route: str, url: str, messages: list[Any], **options: Any) -> Any:
    name = "scripted" if url == SCRIPTED else "starter"
    base = url if route == "anthropic" else f"{url}/v1"
    return litellm.completion(
        model=f"{route}/{name}", api_base=base, api_key=KEY, messages=messages, num_retries=0, timeout=120, **options
    )


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dumped", [False, True])
def test_two_turns(route: str, dumped: bool) -> None:
    first = ask(route, SCRIPTED, [user(FIRST)]).choices[0].message
    replayed = first.model_dump() if dumped else first
    second = ask(route, SCRIPTED, [user(FIRST), replayed, user(SECOND)]).choices[0].message
    assert second.content == said(FIRST, said(FIRST), SECOND)


@pytest.mark.parametrize("route", ROUTES)
def test_tools_answered_out_of_order(route: str) -> None:
    message = ask(route, SCRIPTED, [user(QUESTION)], tools=[TOOL]).choices[0].message
    results = [
        {
            "role": "tool", "tool_call_id": call.id, "name": "get_weather",
            "content": measure(json.loads(call.function.arguments)["city"]),
        }
        for call in message.tool_calls
    ]  # fmt: skip
    assert len(results) == 2
    turns = [user(QUESTION), message.model_dump(), *reversed(results)]
    assert ask(route, SCRIPTED, turns, tools=[TOOL]).choices[0].message.content == REPORT


@pytest.mark.parametrize("effort", ["low", "none"])
def test_an_effort_is_taken(effort: str) -> None:
    answer = ask("hosted_vllm", SCRIPTED, [user(FIRST)], reasoning_effort=effort)
    assert answer.choices[0].message.content == said(FIRST)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_answer(kind: type[BaseModel]) -> None:
    answer = ask("hosted_vllm", STARTER, [user(form(kind))], response_format=kind, temperature=0, max_tokens=400)
    kind.model_validate_json(answer.choices[0].message.content)
