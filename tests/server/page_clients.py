"""A server with the page, a model whose answers a test writes, and browsers that have logged in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from page_folding import Folded, read_events

from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from scripted_llm import scripted_llm

ANN, BOB = "the-key-of-ann", "the-key-of-bob"

TOOLS = '''
from glm4 import tool
from glm4.agent.tool import ToolContext

@tool
def weather(city: str) -> str:
    """The weather."""
    return f"rain in {city}"

@tool(approval="ask")
def launch(what: str) -> str:
    """Launch something."""
    return f"{what} is up"

@tool
def note(text: str, context: ToolContext) -> str:
    """Write a note."""
    context.file(context.files.put("note.txt", text.encode()))
    return "made it"
'''


@contextmanager
def page_server(
    folder: Path,
    *keys: str,
    answer: Callable[[str], str] = lambda prompt: "\nHello.",
    delay: float = 0.0,
    agent: Mapping[str, Any] | None = None,
    ui: bool = True,
) -> Iterator[LiveServer]:
    """Serve until the block ends; the tools of `tools_of` may be used."""
    tools = folder / "tools.py"
    tools.write_text(TOOLS)
    settings = ServerConfig(
        (ModelSpec("m", ("m",)),), api_keys=keys, ui=ui, agent=AgentConfig(**{"tools": (str(tools),), **(agent or {})})
    )
    with serve(settings, scripted_llm(folder / "model", answer, delay=delay, template=None)) as live:
        yield live


def tools_of(folder: Path) -> list[str]:
    """What a turn names to use all tools."""
    return [str(folder / "tools.py")]


@contextmanager
def logged_in(live: LiveServer, key: str) -> Iterator[httpx.Client]:
    """A browser's session: its cookie, and the token as a header."""
    with live.client() as client:
        answer = client.post("/ui/login", json={"key": key})
        assert answer.status_code == 200, answer.text
        client.headers["X-GLM4-Token"] = answer.json()["token"]
        yield client


def started(client: httpx.Client, content: str, **more: Any) -> dict[str, str]:
    """A turn that has begun."""
    answer = client.post("/v1/agent/turns", json={"content": content, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def followed(client: httpx.Client, turn: str, most: int | None = None) -> Folded:
    """What a reader has of a turn at its end, or after so many events."""
    folded = Folded()
    with client.stream("GET", f"/ui/turns/{turn}/events") as answer:
        assert answer.status_code == 200, answer.read()
        for count, event in enumerate(read_events(answer.iter_lines()), 1):
            folded.add(event)
            if count == most:
                break
    return folded


def conversation(client: httpx.Client, name: str, **query: str) -> dict[str, Any]:
    """A conversation as the page shows it."""
    answer = client.get(f"/ui/conversations/{name}", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
