"""The tools that users name: `python`, `browser`, `image`, `files`, `mcp:SERVER`, and a file of their own functions.

A new tool is a row of the table at the foot. What a tool needs is imported when it is opened.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from glm4.agent.files import FileStore
from glm4.agent.tool import Tool
from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import FetchPolicy

MCP = "mcp:"
"""What the names of MCP servers begin with."""


@dataclass(frozen=True)
class ToolServices:
    """What tools are opened with.

    Attributes:
        files: where files of the conversation are; None keeps none.
        search: the search engine of the browser; None for its own choice.
        image_url: the service that makes pictures; None: from its environment variable.
        mcp_config: the file that lists MCP servers.
        fetch_policy: which pages the browser may open; None for its own choice.
        python_files: name → file of functions, for names that are no paths: those that a server's clients use.
    """

    files: FileStore | None = None
    search: str | None = None
    image_url: str | None = None
    mcp_config: Path | None = None
    fetch_policy: FetchPolicy | None = None
    python_files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolRow:
    """A tool that can be opened by name.

    Attributes:
        open: makes the tools of one conversation; they are closed by whoever asked for them.
        summary: one line for users.
    """

    open: Callable[[ToolServices], list[Tool]]
    summary: str


def open_tools(names: Sequence[str], services: ToolServices) -> list[Tool]:
    """Tools for one conversation; the same name twice counts once.

    Args:
        names: of the table, `mcp:SERVER` (`mcp:` for all of them), or paths of Python files with functions of the user
            (`….py`).

    Raises:
        InvalidRequestError: there is no such tool.
        MissingExtraError: a package it needs is not installed.
        Glm4Error: it cannot be opened; those before it are closed.
    """
    found: list[Tool] = []
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            for tool in _open(name, services):
                stack.callback(tool.close)
                found.append(tool)
        stack.pop_all()
    return found


def _open(name: str, services: ToolServices) -> list[Tool]:
    row = TOOLS.get(name)
    if row is not None:
        return row.open(services)
    if name.endswith(".py"):
        from glm4.agent.functions import load_tools

        return load_tools(services.python_files.get(name, Path(name)).expanduser())
    if name.startswith(MCP):
        return _mcp_servers(name, services)
    close = difflib.get_close_matches(name, TOOLS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(TOOLS)
    raise InvalidRequestError(
        f"there is no tool {name[:80]!r}{hint} (tools: {known}, {MCP}NAME for an MCP server, a .py file of functions)",
        param="tools",
    )


def _mcp_servers(name: str, services: ToolServices) -> list[Tool]:
    from glm4.agent.mcp.tools import open_mcp

    if services.mcp_config is None:
        raise InvalidRequestError(f"{name} needs a file that lists MCP servers", param="tools")
    # All together, as names of functions differ from those of the other servers. Nothing is started by that.
    tools = open_mcp(services.mcp_config)
    chosen = [tool for tool in tools if name in (MCP, tool.name)]
    if not chosen:
        known = ", ".join(tool.name.removeprefix(MCP) for tool in tools) or "none"
        raise InvalidRequestError(
            f"{services.mcp_config} has no server {name.removeprefix(MCP)!r} (it has: {known})", param="tools"
        )
    return chosen


def _python(services: ToolServices) -> list[Tool]:
    from glm4.agent.tools.python import PythonTool

    return [PythonTool()]


def _browser(services: ToolServices) -> list[Tool]:
    from glm4.agent.tools.browser import BrowserTool

    if services.fetch_policy is None:
        return [BrowserTool(search=services.search)]
    return [BrowserTool(search=services.search, policy=services.fetch_policy)]


def _image(services: ToolServices) -> list[Tool]:
    from glm4.agent.tools.image import ImageTool

    return [ImageTool(services.image_url)]


def _files(services: ToolServices) -> list[Tool]:
    from glm4.agent.tools.files import FilesTool

    return [FilesTool()]


TOOLS: dict[str, ToolRow] = {
    "python": ToolRow(_python, "Runs Python code in a sandbox, with files and plots."),
    "browser": ToolRow(_browser, "Searches the web and reads pages."),
    "image": ToolRow(_image, "Makes pictures from descriptions."),
    "files": ToolRow(_files, "Searches and reads the files that the user has sent."),
}
