"""A server for tests of files: what the scripted model says, with or without keys, and OpenAI's client for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
from openai import OpenAI

from glm4.api.schemas import components
from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from scripted_llm import scripted_llm

KEYS = ("first-key-of-a-test", "second-key-of-a-test")
HANDBOOK = """# Handbook

Employees have thirty vacation days per year.

# Travel

Trains are booked by the travel office.
"""
SCHEMAS = {**components("agent"), **components("files")}


@contextmanager
def files_server(
    folder: Path,
    answer: Callable[[str], str] = lambda prompt: "\nok",
    *,
    keys: tuple[str, ...] = (),
    llm: dict[str, Any] | None = None,
    **agent: Any,
) -> Iterator[LiveServer]:
    config = ServerConfig((ModelSpec("m", ("m",)),), agent=AgentConfig(**agent), api_keys=keys)
    options = {"template": None, **(llm or {})}
    with serve(config, scripted_llm(folder / "model", answer, **options)) as live:
        yield live


def client_of(live: LiveServer, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0, timeout=120)


def check(name: str, value: object) -> Any:
    """A body that has the form that the document says."""
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    jsonschema.Draft202012Validator(document).validate(value)
    return value
