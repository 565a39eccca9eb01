"""Options of `glm4 serve` for the assistant: its tools, and where conversations are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Option

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


def tool_names(given: list[str] | None) -> tuple[str, ...]:
    """Names of tools as a command line has them: separated by commas, and repeated."""
    return tuple(dict.fromkeys(name.strip() for text in given or () for name in text.split(",") if name.strip()))
