"""A server with tools that requests may use, a model whose answers a test writes, and a small web to search."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import openai
from browsing import FILLER, html
from openai_schema import check_response, check_response_stream, events
from response_stream import plain, rebuilt

from glm4.agent.toolbox import ToolServices
from glm4.api.schemas import components
from glm4.multimodal.fetch import FetchPolicy
from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from scripted_llm import scripted_llm
from web_sites import Site, page, site

_CALL = re.compile(r"[a-z_]+\n")
KEY = "a-key-for-tests"
Rules = Sequence[tuple[str, str]]


def scripted(rules: Rules) -> Callable[[str], str]:
    """A model that gives the answer of the first rule whose words the prompt has."""

    def answer(prompt: str) -> str:
        return next((said for words, said in rules if words in prompt), "I do not know.")

    return answer


@contextmanager
def web() -> Iterator[Site]:
    """A site with an article, and a SearXNG that finds it."""
    text = f"<html><head><title>On tides</title></head><body><article><p>{FILLER}</p><p>The tide of Fundy rises 16 m."

    def found(server: Site, connection: Any) -> None:
        results = [{"url": f"http://127.0.0.1:{server.port}/tides", "title": "On tides", "content": "The highest"}]
        connection.sendall(page(json.dumps({"results": results}).encode(), media_type="application/json"))

    class Answers(dict[str, Any]):
        def __missing__(self, path: str) -> Any:
            assert path.startswith("/search?"), path
            return found

    with site(Answers({"/tides": html(f"{text}</p></article></body></html>")})) as running:
        yield running


@contextmanager
def tool_server(
    folder: Path,
    answer: Callable[[str], str],
    *tools: str,
    dialect: str | None = None,
    searched: Site | None = None,
    agent: dict[str, Any] | None = None,
    delay: float = 0.0,
    **options: Any,
) -> Iterator[LiveServer]:
    """Serve a scripted model and these tools; `mcp:tests` is `mcp_small_server.py`, a program of its own."""
    mcp = folder / "mcp.json"
    # With the folder on its command line, by which a test finds it.
    arguments = ["-I", "-S", str(Path(__file__).with_name("mcp_small_server.py")), str(folder)]
    mcp.write_text(json.dumps({"mcpServers": {"tests": {"command": sys.executable, "args": arguments}}}))
    services = ToolServices(
        search=None if searched is None else f"searxng:http://127.0.0.1:{searched.port}",
        mcp_config=mcp,
        fetch_policy=None if searched is None else FetchPolicy(private_hosts=("127.0.0.1",), ports=(searched.port,)),
    )
    config = ServerConfig(
        (ModelSpec("m", ("m",)),), api_keys=(KEY,), agent=AgentConfig(tools, services, **(agent or {})), **options
    )
    llm = scripted_llm(
        folder / "model", answer, dialect=dialect or "glm4", delay=delay, max_model_len=16384, template=None
    )
    with serve(config, llm) as live:
        yield live


@contextmanager
def asked(folder: Path, rules: Rules, *tools: str, **options: Any) -> Iterator[tuple[openai.OpenAI, LiveServer]]:
    """OpenAI's client, connected to such a server."""
    with ExitStack() as stack:
        # GLM-4 begins a text with an empty line of metadata.
        start = "\n" if options.get("dialect", "glm4") == "glm4" else ""
        said = [(words, text if (start and _CALL.match(text)) else start + text) for words, text in rules]
        live = stack.enter_context(tool_server(folder, scripted(said), *tools, **options))
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0, timeout=120)
        yield stack.enter_context(client), live


def both(live: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer, after it was compared with the streamed one. All types are checked strictly."""
    with live.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        whole = answer.json()
        check_response(whole)
        text = http.post("/v1/responses", json={**body, "stream": True}).text
    check_response_stream(text)
    told = [json.loads(data) for data in events(text)]
    for name, value in (("Response", whole), *(("ResponseEvent", one) for one in told)):
        described(name).validate(value)
    response = told[-1]["response"]
    assert rebuilt(told) == response["output"]
    assert plain(response) == plain(whole)
    return whole


def described(name: str) -> jsonschema.Draft202012Validator:
    """What the OpenAPI document says of this form."""
    known = {**components("openai"), **components("responses")}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": known}})


def upload(live: LiveServer, name: str, data: bytes) -> str:
    """Send a file; its id."""
    with live.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        sent = http.post("/v1/agent/files", params={"name": name}, content=data)
        assert sent.status_code == 200, sent.text
        return str(sent.json()["file"])


def kinds(response: Any) -> list[str]:
    """Types of the items."""
    return [item["type"] if isinstance(item, dict) else item.type for item in response]
