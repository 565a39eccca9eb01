"""The openai library, first major release and newest: chats, responses, streams, tools, typed answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from common import FIRST, KEY, QUESTION, REPORT, SCRIPTED, SECOND, STARTER, TYPED, form, measure, said
from pydantic import BaseModel

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
RESPONSE_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("form", ["dump", "dump without None", "object", "json"])
def test_chat_of_two_turns(form: str) -> None:
    client = connect(SCRIPTED)
    messages = [user(FIRST)]
    first = client.chat.completions.create(model="scripted", messages=messages).choices[0].message
    replayed: Any = {
        "dump": first.model_dump,
        "dump without None": lambda: first.model_dump(exclude_none=True),
        "object": lambda: first,
        "json": lambda: first.to_dict(mode="json"),
    }[form]()
    second = client.chat.completions.create(model="scripted", messages=[*messages, replayed, user(SECOND)])
    assert first.content == said(FIRST)
    assert second.choices[0].message.content == said(FIRST, said(FIRST), SECOND)


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_of_a_chat_answered_out_of_order(streamed: bool) -> None:
    client, messages = connect(SCRIPTED), [user(QUESTION)]
    if streamed:
        with client.chat.completions.stream(model="scripted", messages=messages, tools=[CHAT_TOOL]) as stream:
            message: Any = stream.get_final_completion().choices[0].message
    else:
        message = (
            client.chat.completions.create(model="scripted", messages=messages, tools=[CHAT_TOOL]).choices[0].message
        )
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": measure(json.loads(call.function.arguments)["city"])}
        for call in message.tool_calls
    ]
    assert len(results) == 2
    messages += [message.model_dump(), *reversed(results)]
    last = client.chat.completions.create(model="scripted", messages=messages, tools=[CHAT_TOOL]).choices[0].message
    assert last.content == REPORT


@pytest.mark.parametrize("kept", ["items", "dumped items", "previous_response_id"])
def test_responses_of_two_turns_with_tools(kept: str) -> None:
    client, items = connect(SCRIPTED), [user(QUESTION)]
    first = client.responses.create(model="scripted", input=items, tools=[RESPONSE_TOOL])
    results: list[Any] = [
        {"type": "function_call_output", "call_id": one.call_id, "output": measure(json.loads(one.arguments)["city"])}
        for one in first.output
        if one.type == "function_call"
    ]
    assert len(results) == 2
    results.reverse()
    if kept == "previous_response_id":
        second = client.responses.create(
            model="scripted", input=results, tools=[RESPONSE_TOOL], previous_response_id=first.id
        )
    else:
        output = [one.model_dump() for one in first.output] if kept == "dumped items" else list(first.output)
        second = client.responses.create(model="scripted", input=[*items, *output, *results], tools=[RESPONSE_TOOL])
    assert second.output_text == REPORT
    third = client.responses.create(model="scripted", input=SECOND, previous_response_id=second.id)
    assert third.output_text == said(QUESTION, REPORT, SECOND)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_answer_of_a_chat(kind: type[BaseModel]) -> None:
    parse = getattr(connect(STARTER).chat.completions, "parse", None) or connect(STARTER).beta.chat.completions.parse
    message = (
        parse(model="starter", messages=[user(form(kind))], response_format=kind, temperature=0, max_tokens=400)
        .choices[0]
        .message
    )
    assert isinstance(message.parsed, kind), message.content


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_answer_of_a_response(kind: type[BaseModel]) -> None:
    answer = connect(STARTER).responses.parse(
        model="starter", input=form(kind), text_format=kind, temperature=0, max_output_tokens=400
    )
    assert isinstance(answer.output_parsed, kind), answer.output_text


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_arguments(kind: type[BaseModel]) -> None:
    client = connect(STARTER)
    parse = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
    message = parse(
        model="starter", messages=[user(form(kind))], tools=[openai.pydantic_function_tool(kind)],
        tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=400,
    ).choices[0].message  # fmt: skip
    assert isinstance(message.tool_calls[0].function.parsed_arguments, kind)
