"""OpenAI's agents library, and LangChain's `ChatOpenAI`, with tools that our server runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import agents
import openai
import pytest
from builtin_tools import KEY, scripted, tool_server, upload, web
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai.types.responses.tool_param import CodeInterpreter, Mcp
from python_conversations import make_bare_home, needs_sandbox

from live import LiveServer

CODE: CodeInterpreter = {"type": "code_interpreter", "container": {"type": "auto"}}
MCP: Mcp = {"type": "mcp", "server_label": "tests", "require_approval": "never"}
RULES = [
    ("rises 16 m", "\nRain in Oslo, 42, in March, 5, and up to 16 m【8†source】."),
    ("On tides", "simple_browser\nmclick([0])"),
    ('"sum": 5', 'simple_browser\nsearch("highest tide")'),
    ("heron nests in March", 'tests__add\n{"a": 2, "b": 3}'),
    ("42", 'search_files\n{"query": "heron nests"}'),
    ("rain in Oslo", "python\nprint(6 * 7)"),
    ("Everything", 'get_weather\n{"city": "Oslo"}'),
]
pytestmark = [pytest.mark.slow, needs_sandbox, pytest.mark.usefixtures("bare_home")]


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python tool without its packages."""
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))


@contextmanager
def serving(folder: Path) -> Iterator[LiveServer]:
    names = ("python", "browser", "files", "mcp:tests")
    with web() as found, tool_server(folder, scripted(RULES), *names, searched=found) as live:
        yield live


@agents.function_tool
def get_weather(city: str) -> str:
    """Weather of a place.

    Args:
        city: where.
    """
    return f"rain in {city}"


def agent(live: LiveServer, client: openai.AsyncOpenAI) -> agents.Agent[Any]:
    file = upload(live, "birds.md", b"The heron nests in March.\n")
    return agents.Agent(
        "Assistant",
        instructions="Use your tools.",
        model=agents.OpenAIResponsesModel("m", client),
        tools=[
            get_weather,
            agents.CodeInterpreterTool(CODE),
            agents.FileSearchTool(vector_store_ids=[file]),
            agents.HostedMCPTool(MCP),
            agents.WebSearchTool(),
        ],
    )


CALLS = ["function_call", "code_interpreter_call", "file_search_call", "mcp_call", "web_search_call", "web_search_call"]


def types_of(result: agents.RunResultBase) -> list[str]:
    """Of what the model called and said, in the order of both responses."""
    types = [item.type for response in result.raw_responses for item in response.output]
    return [one for one in types if one not in ("mcp_list_tools", "reasoning")]


@pytest.mark.asyncio
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_an_agent_with_every_tool(tmp_path: Path, streamed: bool, stored: bool) -> None:
    """The library runs its function itself; the rest happens here, in the second response."""
    with serving(tmp_path) as live:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
            config = agents.RunConfig(tracing_disabled=True)
            options: Any = {"run_config": config, "auto_previous_response_id": stored}
            result: Any
            if streamed:
                result = agents.Runner.run_streamed(agent(live, client), "Everything, please", **options)
                heard = [event async for event in result.stream_events()]
                text = "".join(
                    event.data.delta
                    for event in heard
                    if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
                )
                assert text.startswith("Rain in Oslo")
            else:
                result = await agents.Runner.run(agent(live, client), "Everything, please", **options)
        assert result.final_output == RULES[0][1].strip()
        assert types_of(result) == [*CALLS, "message"]
        (message,) = [item for item in result.new_items if item.type == "message_output_item"]
        annotations = message.raw_item.content[0].annotations
        assert [one.type for one in annotations] == ["url_citation"]
        # And the conversation goes on, with everything that was called in it.
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
            again: Any = [*result.to_input_list(), {"role": "user", "content": "Thanks."}]
            later = await agents.Runner.run(agent(live, client), again, run_config=config)
        assert later.final_output


def chat(live: LiveServer) -> Any:
    file = upload(live, "birds.md", b"The heron nests in March.\n")
    options: Any = {"model": "m", "base_url": f"{live.url}/v1", "api_key": KEY, "output_version": "responses/v1"}
    model: Any = ChatOpenAI(**options, use_responses_api=True)
    search = {"type": "file_search", "vector_store_ids": [file]}
    weather = {
        "type": "function",
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    return model.bind_tools([CODE, search, MCP, {"type": "web_search"}, weather])


@pytest.mark.parametrize("streamed", [False, True])
def test_langchain(tmp_path: Path, streamed: bool) -> None:
    def say(model: Any, messages: list[Any]) -> Any:
        if not streamed:
            return model.invoke(messages)
        first, *rest = model.stream(messages)
        return sum(rest, first)

    with serving(tmp_path) as live:
        model = chat(live)
        messages: list[Any] = [HumanMessage("Everything, please")]
        asked = say(model, messages)
        (call,) = asked.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
        messages += [asked, ToolMessage("rain in Oslo", tool_call_id=call["id"])]
        answer = say(model, messages)
        kinds = [block["type"] for block in answer.content if block["type"] not in ("mcp_list_tools", "reasoning")]
        assert kinds == [*CALLS[1:], "text"]
        assert answer.text == RULES[0][1].strip()
        code = next(block for block in answer.content if block["type"] == "code_interpreter_call")
        assert (code["code"], code["outputs"]) == ("print(6 * 7)", [{"type": "logs", "logs": "42\n"}])
        mcp = next(block for block in answer.content if block["type"] == "mcp_call")
        assert (mcp["name"], json.loads(mcp["output"])) == ("add", {"sum": 5})
        # LangChain's own form of all of them.
        blocks = [block["type"] for block in answer.content_blocks]
        assert {"server_tool_call", "server_tool_result", "text"} <= set(blocks)
        (cited,) = next(block for block in answer.content_blocks if block["type"] == "text")["annotations"]
        assert (cited["type"], cited["title"]) == ("citation", "On tides")
        assert answer.usage_metadata["output_tokens"] > 0
        later = say(model, [*messages, answer, HumanMessage("Thanks.")])
        assert later.text
