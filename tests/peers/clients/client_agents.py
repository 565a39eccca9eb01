"""Agent frameworks: pydantic-ai (three APIs) and openai-agents (two), with tools that run side by side."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import openai
import pydantic_ai
import pytest
from anthropic import AsyncAnthropic
from common import FIRST, KEY, QUESTION, REPORT, SCRIPTED, SECOND, STARTER, TYPED, form, measure, said
from pydantic import BaseModel
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

agents.set_tracing_disabled(True)
URLS = {"scripted": SCRIPTED, "starter": STARTER}
SETTINGS: Any = {"temperature": 0, "max_tokens": 400}


def model_of_pydantic_ai(api: str, name: str) -> Any:
    if api == "messages":
        client = AsyncAnthropic(base_url=URLS[name], api_key=KEY, max_retries=0)
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))
    kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
    return kind(name, provider=OpenAIProvider(base_url=f"{URLS[name]}/v1", api_key=KEY))


async def get_weather(city: str) -> str:
    """The weather of a city."""
    return await asyncio.to_thread(measure, city)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_pydantic_ai_remembers(api: str) -> None:
    agent = pydantic_ai.Agent(model_of_pydantic_ai(api, "scripted"))
    first = agent.run_sync(FIRST)
    second = agent.run_sync(SECOND, message_history=first.all_messages())
    assert second.output == said(FIRST, said(FIRST), SECOND)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_pydantic_ai_with_tools(api: str) -> None:
    agent = pydantic_ai.Agent(model_of_pydantic_ai(api, "scripted"), tools=[get_weather])
    first = agent.run_sync(QUESTION)
    assert first.output == REPORT
    second = agent.run_sync(SECOND, message_history=first.all_messages())
    assert second.output == said(QUESTION, REPORT, SECOND)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_pydantic_ai_streams(api: str) -> None:
    agent = pydantic_ai.Agent(model_of_pydantic_ai(api, "scripted"))

    async def run() -> str:
        async with agent.run_stream(FIRST) as stream:
            return "".join([piece async for piece in stream.stream_text(delta=True)])

    assert asyncio.run(run()) == said(FIRST)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_pydantic_ai_typed(kind: type[BaseModel]) -> None:
    native = pydantic_ai.NativeOutput(kind)
    for output in (kind, native):
        agent: Any = pydantic_ai.Agent(
            model_of_pydantic_ai("chat", "starter"), output_type=output, model_settings=SETTINGS
        )
        assert isinstance(agent.run_sync(form(kind)).output, kind)


def model_of_openai_agents(api: str, name: str) -> Any:
    client = openai.AsyncOpenAI(base_url=f"{URLS[name]}/v1", api_key=KEY, max_retries=0)
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    return kind(model=name, openai_client=client)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openai_agents_with_tools_and_a_second_turn(api: str) -> None:
    agent = agents.Agent(
        name="a", model=model_of_openai_agents(api, "scripted"), tools=[agents.function_tool(get_weather)]
    )
    first = agents.Runner.run_sync(agent, QUESTION)
    assert first.final_output == REPORT
    second = agents.Runner.run_sync(agent, [*first.to_input_list(), {"role": "user", "content": SECOND}])
    assert second.final_output == said(QUESTION, REPORT, SECOND)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openai_agents_stream(api: str) -> None:
    agent = agents.Agent(name="a", model=model_of_openai_agents(api, "scripted"))

    async def run() -> str:
        result = agents.Runner.run_streamed(agent, FIRST)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    assert asyncio.run(run()) == said(FIRST)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_openai_agents_typed(kind: type[BaseModel]) -> None:
    agent: Any = agents.Agent(
        name="a", model=model_of_openai_agents("responses", "starter"),
        output_type=agents.AgentOutputSchema(kind, strict_json_schema=False),
        model_settings=agents.ModelSettings(temperature=0, max_tokens=400),
    )  # fmt: skip
    assert isinstance(agents.Runner.run_sync(agent, form(kind)).final_output, kind)
