"""`open_mcp`: one `Tool` per MCP server, with the server's tools as its functions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glm4.agent.mcp.config import McpServer, load_servers
from glm4.agent.mcp.connection import Connection
from glm4.agent.mcp.functions import Names, functions, prefix
from glm4.agent.mcp.results import tool_result
from glm4.agent.mcp.text import one_line
from glm4.agent.tool import Approval, Function, Invocation, Tool, ToolContext, ToolResult
from glm4.errors import ToolServerError
from glm4.system.extras import Package, require_packages

_PACKAGES = (Package("mcp", "2.3", "3"),)
_MAX_ABOUT = 500


def open_mcp(config: Path | Sequence[McpServer]) -> list[Tool]:
    """Tools of these servers; nothing is started or connected before the first use.

    Args:
        config: servers, or a file as `load_servers` reads it.

    Raises:
        InvalidRequestError: the file cannot be read, or something in it is wrong.
        MissingExtraError: the package `mcp` is not installed.
    """
    servers = load_servers(config) if isinstance(config, Path) else config
    if not servers:
        return []
    require_packages("an MCP server", "mcp", _PACKAGES)
    for name in ("mcp", "httpx2"):  # their tracebacks of what servers do wrong are for logs, not for terminals
        logging.getLogger(name).addHandler(logging.NullHandler())
    taken: dict[str, McpServer] = {}
    for server in servers:
        taken[prefix(server.name, taken)] = server
    return [McpTool(server, chosen) for chosen, server in taken.items()]


class McpTool(Tool):
    """One server. `functions` connects when it is first read."""

    def __init__(self, server: McpServer, name_prefix: str) -> None:
        self.name = f"mcp:{server.name}"
        self.approval = server.approval
        self.timeout = server.timeout
        self._server = server
        self._connection = Connection(server)
        self._names = Names(name_prefix)
        self._seen: list[Any] | None = None
        self._functions: tuple[Function, ...] = ()

    @property
    def functions(self) -> Sequence[Function]:  # type: ignore[override]
        """What the server offers now.

        Raises:
            ToolServerError: it cannot be started or reached; says why.
        """
        tools = self._connection.tools()
        if tools is not self._seen:
            self._functions = tuple(functions(self._server.name, tools, self._names))
            self._seen = tools
        return self._functions

    def approval_of(self, function: str) -> Approval:
        """See `Tool.approval_of`."""
        tool = self._names.tool(function)
        return "never" if tool is None else self._server.approval_of(tool)

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        tool = self._names.tool(invocation.function)
        if tool is None or not self._server.offers(tool):
            return ToolResult.error(f"{self.name} has no function {one_line(invocation.function, 100)}")
        try:
            arguments = json.loads(invocation.arguments or "{}")
        except (ValueError, RecursionError) as error:
            return ToolResult.error(f"the arguments are not valid JSON: {error}")
        if not isinstance(arguments, dict):
            return ToolResult.error("the arguments must be a JSON object")
        try:
            result = self._connection.call(
                tool,
                arguments,
                deadline=context.deadline,
                cancelled=context.cancelled,
                note=lambda text: context.output(text, "log"),
            )
        except ToolServerError as error:
            return ToolResult.error(str(error))
        return tool_result(result, context)

    def about(self, invocation: Invocation) -> str:
        """See `Tool.about`."""
        tool = self._names.tool(invocation.function) or invocation.function
        return one_line(f"{self._server.name}: {tool} {invocation.arguments}", _MAX_ABOUT)

    def close(self) -> None:
        """See `Tool.close`."""
        self._connection.close()
