"""Servers for the page's tests: the real app in this process, and `glm4` processes; models say what tests write."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from page_model import Model, Rules

from glm4.agent.toolbox import ToolServices
from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from stepped import until

FUNCTIONS = '''
from glm4 import tool
from glm4.agent.tool import ToolContext

@tool
def weather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return f"rain in {city}"

@tool(approval="ask")
def launch(what: str) -> str:
    """Launch something."""
    return f"{what} is up"

@tool
def note(name: str, text: str, context: ToolContext) -> str:
    """Write a file."""
    context.file(context.files.put(name, text.encode()))
    return "made it"

@tool
def say(text: str, context: ToolContext) -> str:
    """Say something."""
    context.output(text)
    return text

@tool
def hang(context: ToolContext) -> str:
    """Work until it is told to stop."""
    context.output("working")
    context.cancelled.wait(600)
    return "stopped"
'''


@dataclass(frozen=True)
class Served:
    """A server of this process, its models, and the file of functions that it offers as a tool."""

    live: LiveServer
    models: Mapping[str, Model]
    functions: str

    @property
    def url(self) -> str:
        return self.live.url

    @property
    def model(self) -> Model:
        return next(iter(self.models.values()))

    def conversation(self, at: int = 0, key: str | None = None) -> dict[str, Any]:
        """What is stored: the conversation that changed last, or an earlier one."""
        with self.client(key) as client:
            listed = client.get("/v1/agent/conversations").json()["conversations"]
            return client.get(f"/v1/agent/conversations/{listed[at]['id']}").json()

    def client(self, key: str | None = None) -> httpx.Client:
        return self.live.client(headers={"Authorization": f"Bearer {key}"} if key else {})


def text_of(message: Mapping[str, Any]) -> str:
    """The visible text of a stored message."""
    return "".join(part["text"] for part in message["parts"] if part["kind"] == "text")


@contextmanager
def page_server(
    folder: Path,
    rules: Rules,
    *tools: str,
    more: Mapping[str, Model] | None = None,
    functions: bool = True,
    sessions: Path | None = None,
    services: ToolServices | None = None,
    model: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Serve the page over a model that follows rules.

    Args:
        tools: that turns may use, beside the functions of this file.
        more: further models, by name.
        model: options of `Model`.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "functions.py"
    path.write_text(FUNCTIONS)
    named = (*tools, *([path.name] if functions else ()))
    models = {"scripted": Model(folder / "model", rules, **(model or {})), **(more or {})}
    services = replace(services or ToolServices(), python_files={path.name: path})
    agent = AgentConfig(named, services, sessions=sessions)
    specs = tuple(ModelSpec(name, (name,)) for name in models)
    config = ServerConfig(specs, agent=agent, ui=True, **options)
    with serve(config, load=lambda spec, progress: models[spec.source].llm) as live:
        yield Served(live, models, path.name)


class Process:
    """`glm4 serve --ui` as a process, on a port that stays the same over its lives. The model is another server's."""

    def __init__(self, model: LiveServer, folder: Path, sessions: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments: Sequence[str] = (
            "-m", f"scripted={folder}", "--backend", "remote", "--base-url", model.url, "--port", str(self.port),
            "--ui", "--sessions", str(sessions), *arguments,
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Come back when the model is ready."""
        self._process = subprocess.Popen([sys.executable, "-m", "glm4", "serve", *self._arguments])
        until(self._ready, "the model is ready", 120)

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """As a crash: nothing is tidied up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
