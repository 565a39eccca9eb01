"""`Listener`: accepts connections, as many as there may be, and never noisily.

asyncio's own loop accepts until the process has no descriptors left, and then logs thousands of errors per second.

When there are too many connections, the one that has been idle for the longest time is closed, so that whoever opens
many and says nothing keeps nobody out; those that have not shown a key go first. If all are busy, new ones wait in the
system's queue until one of them ends.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Collection

from glm4.server.connection import Connection
from glm4.server.errors import log

BACKLOG = 2048
_AT_ONCE = 64  # accepted before other events have their turn
_PAUSE_SECONDS = 0.2  # when the system has no descriptor or memory left
_OTHER_FILES = 128  # descriptors for models, the store, the log and so on


class Listener:
    """One socket.

    Args:
        make: creates the protocol of a new connection.
        connections: those that are open, in no order.
        most: how many of them there may be.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], Connection],
        connections: Collection[Connection],
        most: int,
    ) -> None:
        self._socket = listener
        self._make = make
        self._connections = connections
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], Connection] = {}
        self._listens = False
        self._has_warned = False
        self._closed = False
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self.resume()

    def resume(self) -> None:
        """Accept again, if that was paused and there is room."""
        if not self._listens and not self._closed and self._has_room():
            self._listens = True
            self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Accept no more; the socket itself stays open."""
        self._closed = True
        self._pause()

    def _pause(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._socket)

    def _has_room(self) -> bool:
        return self._count() < self._most or any(one.is_idle for one in self._connections)

    def _count(self) -> int:
        return len(self._connections) + sum(one not in self._connections for one in self._opening.values())

    def _accept(self) -> None:
        idle: list[Connection] = []
        for _ in range(_AT_ONCE):
            full = self._count() >= self._most
            first = self._first_to_go(idle) if full else None
            if full and first is None:
                self._pause()
                return
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._out_of_resources(error)
                return
            if first is not None:
                idle.pop()
                first.evict()
            accepted.setblocking(False)
            connection = self._make()
            task = self._loop.create_task(self._open(connection, accepted))
            self._opening[task] = connection
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        del self._opening[task]
        self.resume()

    async def _open(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # gone already
            accepted.close()

    def _first_to_go(self, idle: list[Connection]) -> Connection | None:
        """The idle connection whose place another one gets; None if there is none.

        Args:
            idle: the order in which connections go, last first; filled here, once for all that are accepted at once.
        """
        if not idle:
            idle += [one for one in self._connections if one.is_idle]
            idle.sort(key=lambda one: (one.is_trusted, one.idle_since), reverse=True)
        # Those that are being opened go before trusted ones.
        return None if not idle or (idle[-1].is_trusted and self._opening) else idle[-1]

    def _out_of_resources(self, error: OSError) -> None:
        self._pause()
        self._loop.call_later(_PAUSE_SECONDS, self.resume)
        if not self._has_warned:
            self._has_warned = True
            log.warning("connections wait: %s; raise the limit of open files, or lower --max-connections", error)


def most_connections(wanted: int) -> int:
    """As many as wanted, or as the limit of open files allows once it is raised as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (ValueError, OSError):
            pass
        if soft < needed:
            wanted = max(1, soft - min(_OTHER_FILES, soft // 2))
            log.warning("at most %d connections: the limit of open files is %d", wanted, soft)
    return wanted
