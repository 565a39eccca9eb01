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
from glm4.server.agent.reading import Readers
from glm4.server.errors import busy

log = logging.getLogger("glm4.server")


@dataclass
class _Opened:
    """The tools of one conversation.

    Attributes:
        lock: taken while they are opened, given files, or closed.
        tools: by the name they were asked for.
        given: files that each of them has.
        turns: that use them now.
        approved: calls that their user always allows.
        holds: a tool is open, or is being opened.
    """

    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tools: dict[str, Sequence[Tool]] = field(default_factory=dict)
    given: dict[str, set[str]] = field(default_factory=dict)
    turns: int = 0
    approved: set[str] = field(default_factory=set)
    holds: bool = False
    closed: bool = False


class ToolPool:
    """Open tools by conversation, of at most `max_open` conversations.

    Args:
        readers: give tools the files of users.
        clock: seconds, from any start.
    """

    def __init__(self, config: AgentConfig, readers: Readers, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._readers = readers
        self._clock = clock
        self._opened: dict[str, _Opened] = {}
        self._janitor: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Future[None]] = set()

    def check(self, names: Sequence[str]) -> None:
        """Refuse what the operator does not allow.

        Raises:
            InvalidRequestError: a name is not among the server's tools; `.param` is "tools".
        """
        for name in names:
            if name not in self._config.tools:
                known = ", ".join(self._config.tools) or "none"
                raise InvalidRequestError(f"this server has no tool {name[:80]!r} (it has: {known})", param="tools")

    def has(self, conversation: str) -> bool:
        """Whether tools of this conversation are open."""
        return conversation in self._opened

    async def take(
        self, conversation: str, names: Sequence[str], files: FileStore, given: Sequence[StoredFile]
    ) -> Sequence[Tool]:
        """Some tools of a conversation, for one turn; `release` ends it. The others stay as they are.

        Args:
            given: files that the user has sent in this conversation; tools get those that they do not have yet.

        Raises:
            ApiError: the tools of too many other conversations are in use (429).
            Glm4Error: a tool cannot be opened.
        """
        self.check(names)
        if self._janitor is None:
            self._janitor = asyncio.create_task(self._tidy())
        if names:
            self._make_room(conversation)
        known = self._opened.setdefault(conversation, _Opened(self._clock()))
        known.turns += 1
        known.holds = known.holds or bool(names)
        try:
            # To its end even if nobody waits anymore: what was opened has to be known here, or nobody would close it.
            await asyncio.shield(asyncio.ensure_future(self._fill(known, names, files, given)))
        except BaseException:
            self.release(conversation)
            raise
        return [tool for name in names for tool in known.tools[name]]

    def approved(self, conversation: str) -> set[str]:
        """What the user of a conversation has allowed for good: until its tools are closed."""
        known = self._opened.get(conversation)
        return set() if known is None else known.approved

    def release(self, conversation: str) -> None:
        """The turn has ended."""
        known = self._opened.get(conversation)
        if known is not None:
            known.turns -= 1
            known.used = self._clock()
            if not known.holds and known.turns <= 0:
                del self._opened[conversation]

    def made(self, conversation: str, file: StoredFile) -> None:
        """A tool of a conversation made a file, so its tools need not be given that."""
        known = self._opened.get(conversation)
        for given in known.given.values() if known is not None else ():
            given.add(file.sha256)

    async def forget(self, conversation: str) -> None:
        """Close the tools of a conversation that is deleted."""
        if conversation in self._opened:
            await self._close(conversation)

    async def close(self) -> None:
        """Close everything. Idempotent."""
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
        await asyncio.gather(*self._closing, *(self._close(conversation) for conversation in list(self._opened)))

    async def _fill(self, known: _Opened, names: Sequence[str], files: FileStore, given: Sequence[StoredFile]) -> None:
        """Open the tools that are not open, and give each the files that it does not have."""
        async with known.lock:
            if known.closed:
                raise InvalidRequestError("this conversation was deleted")
            for name in names:
                if name not in known.tools:
                    services = replace(self._config.services, files=files)
                    known.tools[name] = await asyncio.to_thread(partial(open_tools, (name,), services))
                has = known.given.setdefault(name, set())
                new = [file for file in given if file.sha256 not in has]
                if new:
                    await self._readers.run(partial(_give, known.tools[name], files, new))
                has |= {file.sha256 for file in new}

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, self._config.idle_seconds))
            oldest = self._clock() - self._config.idle_seconds
            for conversation, known in list(self._opened.items()):
                if known.turns <= 0 and known.used < oldest:
                    await self._close(conversation)

    def _make_room(self, conversation: str) -> None:
        """Have the tools of the longest idle conversation closed if those of too many are open."""
        others = {name: known for name, known in self._opened.items() if known.holds and name != conversation}
        if len(others) < self._config.max_open:
            return
        idle = [(known.used, name) for name, known in others.items() if known.turns <= 0]
        if not idle:
            raise busy(f"the tools of {len(others)} conversations are in use; wait for one of them", 5, status=429)
        closing = asyncio.ensure_future(self._close(min(idle)[1]))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, conversation: str) -> None:
        known = self._opened.pop(conversation, None)
        if known is None:
            return
        async with known.lock:
            known.closed = True
            for tool in (tool for tools in known.tools.values() for tool in tools):
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
