"""`ToolPool`: the tools of conversations. They keep state (variables, pages), so they stay open between turns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from glm4.agent.files import FileStore, StoredFile
from glm4.agent.tool import Tool
from glm4.agent.toolbox import open_tools
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.server.agent.config import AgentConfig

log = logging.getLogger("glm4.server")


@dataclass
class _Opened:
    names: tuple[str, ...]
    tools: Sequence[Tool]
    used: float
    turns: int = 0
    given: set[str] = field(default_factory=set)


class ToolPool:
    """Open tools by conversation, at most `max_open` of them beside those that are in use.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, config: AgentConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._opened: dict[str, _Opened] = {}
        self._turn = asyncio.Lock()
        self._janitor: asyncio.Task[None] | None = None

    def check(self, names: Sequence[str]) -> None:
        """Refuse what the operator does not allow.

        Raises:
            InvalidRequestError: a name is not among the server's tools; `.param` is "tools".
        """
        for name in names:
            if name not in self._config.tools:
                known = ", ".join(self._config.tools) or "none"
                raise InvalidRequestError(f"this server has no tool {name[:80]!r} (it has: {known})", param="tools")

    async def take(
        self, conversation: str, names: tuple[str, ...], files: FileStore, given: Sequence[StoredFile]
    ) -> Sequence[Tool]:
        """The tools of a conversation, for one turn; `release` ends it.

        Args:
            given: files that the user has sent in this conversation; tools get those that they do not have yet.

        Raises:
            Glm4Error: a tool cannot be opened.
        """
        self.check(names)
        if self._janitor is None:
            self._janitor = asyncio.create_task(self._tidy())
        async with self._turn:  # two turns of one conversation do not open two interpreters
            known = self._opened.get(conversation)
            if known is not None and known.names != names:
                await self._close(conversation)
                known = None
            if known is None:
                services = replace(self._config.services, files=files)
                tools = await asyncio.to_thread(partial(open_tools, names, services)) if names else []
                known = self._opened[conversation] = _Opened(names, tools, self._clock())
            known.turns += 1
            new = [file for file in given if file.sha256 not in known.given]
            known.given |= {file.sha256 for file in new}
            await asyncio.to_thread(partial(_give, known.tools, files, new))
            await self._make_room()
        return known.tools

    def note(self, conversation: str, file: StoredFile) -> None:
        """The open tools have made this file, and need not be given it."""
        known = self._opened.get(conversation)
        if known is not None:
            known.given.add(file.sha256)

    def release(self, conversation: str) -> None:
        """The turn has ended."""
        known = self._opened.get(conversation)
        if known is not None:
            known.turns -= 1
            known.used = self._clock()

    async def forget(self, conversation: str) -> None:
        """Close the tools of a conversation that is deleted."""
        async with self._turn:
            if conversation in self._opened:
                await self._close(conversation)

    async def close(self) -> None:
        """Close everything. Idempotent."""
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
        async with self._turn:
            for conversation in list(self._opened):
                await self._close(conversation)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, self._config.idle_seconds))
            async with self._turn:
                oldest = self._clock() - self._config.idle_seconds
                for conversation, known in list(self._opened.items()):
                    if known.turns <= 0 and known.used < oldest:
                        await self._close(conversation)

    async def _make_room(self) -> None:
        idle = sorted((known.used, conversation) for conversation, known in self._opened.items() if known.turns <= 0)
        for _, conversation in idle[: max(0, len(self._opened) - self._config.max_open)]:
            await self._close(conversation)

    async def _close(self, conversation: str) -> None:
        for tool in self._opened.pop(conversation).tools:
            try:
                await asyncio.to_thread(tool.close)
            except Exception:  # the others are to be closed, too
                log.exception("the tool %s could not be closed", tool.name)


def _give(tools: Sequence[Tool], files: FileStore, new: Sequence[StoredFile]) -> None:
    for file in new:
        data = files.read(file.sha256)
        for tool in tools:
            try:
                tool.add_file(file.name, data)
            except Glm4Error as error:  # others may take it, and the model is told that it is there
                log.info("the tool %s does not take a file: %s", tool.name, error)
