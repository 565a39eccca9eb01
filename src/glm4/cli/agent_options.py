"""Options of `glm4 serve` and `glm4 ui` for the assistant: its tools, and where conversations are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Option, UsageError

if TYPE_CHECKING:
    from glm4.server.agent.config import AgentConfig

PANEL = "Assistant"


@dataclass(frozen=True)
class AgentOptions:
    """What the assistant at /v1/agent and the built-in tools of /v1/responses may use."""

    tools: Annotated[
        list[str] | None,
        Option(
            metavar="NAMES",
            panel=PANEL,
            help="Tools that clients may use, separated by commas: python, browser, image, files, mcp:NAME, or a .py"
            " file of functions. May be repeated; none without it.",
        ),
    ] = None
    mcp: Annotated[Path | None, Option(metavar="FILE", panel=PANEL, help="MCP servers, as JSON with mcpServers.")] = (
        None
    )
    search: Annotated[
        str | None,
        Option(
            metavar="ENGINE",
            panel=PANEL,
            help="What the browser searches with: a SearXNG address, ddgs, tavily, brave.",
        ),
    ] = None
    sessions: Annotated[
        Path | None,
        Option(
            metavar="FOLDER", panel=PANEL, help="Keep conversations and their files here; else until the server ends."
        ),
    ] = None

    def config(self) -> AgentConfig:
        """The settings; every tool is opened once, so that a server whose tools do not work does not start.

        Raises:
            InvalidRequestError: there is no such tool, or two files have the same name.
            Glm4Error: a tool cannot be opened; says what to install.
        """
        from glm4.errors import InvalidRequestError
        from glm4.server.agent.config import AgentConfig

        names = tool_names(self.tools)
        if not names:
            return AgentConfig(sessions=self.sessions)
        from glm4.agent.toolbox import ToolServices, open_tools

        # Clients name a file as it is called, and learn nothing of the folders of this machine.
        files = {Path(name).name: Path(name) for name in names if name.endswith(".py")}
        shown = tuple(dict.fromkeys(Path(name).name if name.endswith(".py") else name for name in names))
        if len(shown) < len(names):
            raise InvalidRequestError("two files of --tools have the same name; rename one", param="tools")
        names = shown
        services = ToolServices(search=self.search, mcp_config=self.mcp, python_files=files)
        for tool in open_tools(names, services):
            tool.close()
        return AgentConfig(names, services, sessions=self.sessions)


@dataclass(frozen=True)
class OwnAssistant(AgentOptions):
    """What the assistant of `glm4 ui` may use: all that is ready, and the conversations of `glm4 chat`."""

    tools: Annotated[
        list[str] | None,
        Option(
            metavar="NAMES",
            panel=PANEL,
            help="Tools that the page offers, separated by commas: python, browser, image, files, mcp:NAME, a .py file"
            " of functions, or none. May be repeated; without it those that are ready here.",
        ),
    ] = None
    sessions: Annotated[
        Path | None,
        Option(metavar="FOLDER", panel=PANEL, help="Keep conversations here, and not where `glm4 chat` keeps them."),
    ] = None
    save: Annotated[
        bool, Option("--save", "--no-save", panel=PANEL, help="Keep conversations when the program has ended.")
    ] = True

    def config(self) -> AgentConfig:
        """As `AgentOptions.config`.

        Raises:
            UsageError: a folder is named for what is not to be saved.
        """
        if self.sessions is not None and not self.save:
            raise UsageError("--no-save keeps nothing, and --sessions says where to keep it; give one of the two")
        names = tool_names(self.tools)
        if self.tools is None:
            names = ready_tools(self.search, self.mcp)
        elif names == ("none",):
            names = ()
        from glm4.hub.store import home

        kept = (self.sessions or home() / "sessions") if self.save else None
        return replace(AgentOptions(list(names), self.mcp, self.search).config(), sessions=kept)


def ready_tools(search: str | None, mcp: Path | None) -> tuple[str, ...]:
    """Names of the tools that work on this machine, and of those that the command line asks for.

    Args:
        search: the engine of the browser, which is not offered without one.
        mcp: the file that lists MCP servers; all of them.

    Raises:
        Glm4Error: what the command line asks for cannot be opened.
    """
    from glm4.agent.toolbox import MCP, ToolServices, open_tools
    from glm4.agent.tools.browser.search import SETTING
    from glm4.agent.tools.image import URL
    from glm4.cli.console import notice
    from glm4.cli.tools import TOOLS
    from glm4.errors import Glm4Error

    wanted = {"python": TOOLS["python"].lacks(), "files": TOOLS["documents"].lacks()}
    if (search or os.environ.get(SETTING) or "none").strip().lower() != "none":
        wanted["browser"] = [] if search else TOOLS["browser"].lacks()
    if os.environ.get(URL):
        wanted["image"] = []
    if mcp is not None:
        wanted[MCP] = []
    asked, found = {MCP, "browser" if search else MCP}, []
    for name in (name for name, lacks in wanted.items() if not lacks):
        try:
            opened = open_tools((name,), ToolServices(search=search, mcp_config=mcp))
        except Glm4Error as error:
            if name in asked:
                raise
            notice(f"the tool {name} is not offered: {error}")
            continue
        found += [tool.name for tool in opened] if name == MCP else [name]
        for tool in opened:
            tool.close()
    return tuple(found)


def tool_names(given: list[str] | None) -> tuple[str, ...]:
    """Names of tools as a command line has them: separated by commas, and repeated."""
    return tuple(dict.fromkeys(name.strip() for text in given or () for name in text.split(",") if name.strip()))
