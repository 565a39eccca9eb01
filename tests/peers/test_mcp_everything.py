"""The reference server of MCP's own project, over both transports: `make peers ARGS=mcp`.

npm installs it once into a folder of the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agent"))

from mcp_helpers import HANG, MemoryFiles, call, context, invocation, opened, said

from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.tools import McpTool
from glm4.chat.call_grammar import callables

PACKAGE, VERSION = "@modelcontextprotocol/server-everything", "2026.8.31"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glm4-peers"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not (shutil.which("npm") and shutil.which("node")), reason="needs npm and Node.js"),
]


@pytest.fixture(scope="module")
def program() -> Path:
    folder = CACHE / f"server-everything-{VERSION}"
    script = folder / "node_modules" / PACKAGE / "dist" / "index.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([*npm, f"{PACKAGE}@{VERSION}"], check=True, timeout=240)
    return script


@pytest.fixture(scope="module", params=["stdio", "streamableHttp"])
def tool(request: pytest.FixtureRequest, program: Path) -> Iterator[McpTool]:
    if request.param == "stdio":
        with opened(McpServer("every thing", "node", (str(program), "stdio"), startup=HANG)) as tool:
            yield tool
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "PORT": str(port)}
    command = ["node", str(program), "streamableHttp"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + HANG
            while not _listens(port):
                assert time.monotonic() < end
                time.sleep(0.05)
            with opened(McpServer("every thing", url=f"http://127.0.0.1:{port}/mcp", startup=HANG)) as tool:
                yield tool
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_list_and_the_negotiated_protocol(tool: McpTool) -> None:
    names = [function.name for function in tool.functions]
    assert {"every_thing__echo", "every_thing__get-sum", "every_thing__get-tiny-image"} <= set(names)
    assert not {name for name in names if "elicitation" in name or "sampling" in name}, "we do not offer these"
    assert tool._connection.protocol == "2025-11-25"
    assert len(callables([function.definition() for function in tool.functions], ())) == len(names)
    schema = next(function for function in tool.functions if function.name == "every_thing__get-sum").parameters
    assert {name: value["type"] for name, value in schema["properties"].items()} == {"a": "number", "b": "number"}


def test_echo_and_addition(tool: McpTool) -> None:
    assert said(call(tool, "echo", message="你好")) == "Echo: 你好"
    assert said(call(tool, "get-sum", a=2, b=3)) == "The sum of 2 and 3 is 5."
    assert call(tool, "get-sum", a="two").failed


def test_a_picture(tool: McpTool) -> None:
    files = MemoryFiles()
    shown, heard = context(files=files)
    text = said(tool.run(invocation(tool, "get-tiny-image"), shown))
    assert "[image image.png, shown to the user]" in text
    assert files.read(heard.files[0].sha256).startswith(b"\x89PNG")


def test_progress_of_a_long_operation(tool: McpTool) -> None:
    shown, heard = context()
    text = said(tool.run(invocation(tool, "trigger-long-running-operation", duration=1, steps=4), shown))
    assert text == "Long running operation completed. Duration: 1 seconds, Steps: 4."
    assert heard.texts == [("log", f"{i} of 4\n") for i in (1, 2, 3, 4)]


def test_a_long_operation_is_cancelled(tool: McpTool) -> None:
    result = call(tool, "trigger-long-running-operation", seconds=1, duration=30, steps=30)
    assert "took too long" in said(result)
    assert said(call(tool, "echo", message="still there")) == "Echo: still there"


def test_structured_content(tool: McpTool) -> None:
    weather = json.loads(said(call(tool, "get-structured-content", location="Chicago")))
    assert weather == {"temperature": 36, "conditions": "Light rain / drizzle", "humidity": 82}


def test_annotations_say_for_whom_a_part_is(tool: McpTool) -> None:
    for kind, channel in (("debug", "model"), ("error", "model"), ("success", "people")):
        shown, heard = context()
        text = said(tool.run(invocation(tool, "get-annotated-message", messageType=kind, includeImage=False), shown))
        assert bool(heard.texts) == (channel == "people")
        assert ("shown to the user" in text) == (channel == "people")


def test_resources(tool: McpTool) -> None:
    links = said(call(tool, "get-resource-links", count=2))
    assert "[resource Text Resource 2, text/plain: demo://resource/dynamic/text/2]" in links
    text = said(call(tool, "get-resource-reference", resourceType="Text", resourceId=1))
    assert "[resource demo://resource/dynamic/text/1]\nResource 1: This is a plaintext resource" in text


def test_the_environment_is_clean(tool: McpTool) -> None:
    given = json.loads(said(call(tool, "get-env")))
    assert set(given) <= {"PATH", "HOME", "LANG", "GLM4_MCP_PROCESS", "PORT"}
