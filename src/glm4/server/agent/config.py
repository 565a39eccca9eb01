"""`AgentConfig`: what the operator lets the assistant use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glm4.agent.limits import AgentLimits
from glm4.agent.toolbox import ToolServices


@dataclass(frozen=True)
class AgentConfig:
    """Settings of the assistant.

    Attributes:
        tools: names that requests may use; none by default.
        services: what they are opened with: search engine, image service, MCP servers.
        sessions: folder of saved conversations and their files; None keeps them until the server ends.
        max_upload_bytes: of one file.
        max_files_bytes: of all files together.
        max_open: conversations whose tools (interpreters, connections) are open at once.
        idle_seconds: after which the tools of a conversation are closed.
        max_turns: that run or wait at once, of one key.
        max_reading: files that are read at once, each in a process of its own.
    """

    tools: tuple[str, ...] = ()
    services: ToolServices = ToolServices()  # noqa: RUF009  (immutable)
    limits: AgentLimits = AgentLimits()  # noqa: RUF009  (immutable)
    sessions: Path | None = None
    max_upload_bytes: int = 64 << 20
    max_files_bytes: int = 4 << 30
    max_open: int = 16
    idle_seconds: float = 900.0
    max_turns: int = 32
    max_reading: int = 2
