"""An MCP server of the official package, for tests: `mcp_sdk_server.py stdio`, or `http PORT` (a line says "ready")."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from pydantic import BaseModel

PICTURE = bytes.fromhex(  # a PNG of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501012718e3660000"
    "000049454e44ae426082"
)
server = MCPServer("tests", version="1")


@server.tool(structured_output=False)
def echo(text: str) -> str:
    """Says it again."""
    return text


@server.tool()
def add(a: int, b: int) -> dict[str, int]:
    """The sum."""
    return {"sum": a + b}


@server.tool(structured_output=False)
def environment() -> str:
    """Names of the variables of the environment."""
    return " ".join(sorted(os.environ))


@server.tool(structured_output=False)
def where() -> str:
    """The working folder and the process."""
    return f"{Path.cwd()} {os.getpid()}"


@server.tool(structured_output=False)
def picture() -> list[Any]:
    """A picture and a text."""
    return [Image(data=PICTURE, format="png"), "a red dot"]


@server.tool(structured_output=False)
def parts() -> types.CallToolResult:
    """One part of every other kind."""
    users = types.Annotations(audience=["user"])
    uri, blob = "file:///notes/a.txt", "AAEC"
    content: list[types.ContentBlock] = [
        types.AudioContent(type="audio", data=blob, mime_type="audio/wav"),
        types.ResourceLink(type="resource_link", name="a", uri=uri, mime_type="text/plain", description="notes\n of a"),
        types.EmbeddedResource(type="resource", resource=types.TextResourceContents(uri=uri, text="hello")),
        types.EmbeddedResource(type="resource", resource=types.BlobResourceContents(uri="file:///b.bin", blob=blob)),
        types.ImageContent(type="image", data="not base64!", mime_type="image/png"),
        types.TextContent(type="text", text="for people", annotations=users),
    ]
    return types.CallToolResult(content=content)


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("there is no such file")


@server.tool(structured_output=False)
async def steps(count: int, ctx: Context) -> str:
    """Takes a while and says how far it is."""
    for i in range(count):
        await ctx.report_progress(i + 1, count, f"step\x1b[31m {i + 1}")
    return "done"


@server.tool(structured_output=False)
async def wait(path: str) -> str:
    """Waits forever; writes to a file when it begins and when it is cancelled."""
    Path(path).write_text("begun")
    try:
        await anyio.sleep_forever()
        return "never"
    finally:
        Path(path).write_text("cancelled")


@server.tool(structured_output=False)
async def grow(name: str, ctx: Context) -> str:
    """Adds a tool, and says so in the way of either protocol."""
    server.add_tool(echo, name=name, structured_output=False)
    if ctx.protocol_version == "2026-07-28":
        await ctx.notify_tools_changed()
    else:
        await ctx.session.send_tool_list_changed()
    return "added"


class Password(BaseModel):
    password: str


@server.tool(structured_output=False)
async def capabilities(ctx: Context) -> str:
    """What the client says that it can do."""
    return str(ctx.client_capabilities)


@server.tool(structured_output=False)
async def ask_user(ctx: Context) -> str:
    """Asks the user for a password."""
    return str(await ctx.elicit("Your password, please", Password))


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        print("ready", flush=True)
        server.run("streamable-http", port=int(sys.argv[2]), json_response="json" in sys.argv)
