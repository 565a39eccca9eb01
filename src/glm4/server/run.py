"""`run`: an application on a socket, with the limits and the orderly shutdown that uvicorn leaves to its user."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import cast

import uvicorn
from starlette.applications import Starlette

from glm4.errors import Glm4Error, InvalidRequestError
from glm4.server.config import ServerConfig
from glm4.server.connection import Connection
from glm4.server.errors import log
from glm4.server.listener import BACKLOG, Listener, most_connections
from glm4.server.state import ServerState, find_state
from glm4.system.worker_threads import WorkerThreads

KEEP_ALIVE_SECONDS = 15
WORKER_THREADS = 8


class Server(uvicorn.Server):
    """Accepts a bounded number of connections; stops admitting requests as soon as it is told to stop; exits with 0.

    Args:
        on_listening: called in the event loop as soon as clients can connect.
        on_stop: called there when it is told to stop.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        on_listening: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_listening, self._on_stop = on_listening, on_stop
        self._listeners: list[Listener] = []
        self.workers = WorkerThreads(WORKER_THREADS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on sockets that are bound."""
        # asyncio would wait for the threads of its own executor at the end, however long they take.
        asyncio.get_running_loop().set_default_executor(self.workers)
        await super().startup(sockets=[])
        most = most_connections(self._state.config.max_connections)
        connections = cast("set[Connection]", self.server_state.connections)  # `_connection` makes them all
        self._listeners = [Listener(one, self._connection, connections, most) for one in sockets or ()]
        if self.started:
            self._on_listening()

    def _connection(self) -> Connection:
        return Connection(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            header_timeout=self._state.config.header_timeout,
            on_change=self._resume,
        )

    def _resume(self) -> None:
        for listener in self._listeners:
            listener.resume()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, finish what runs."""
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets)

    def hang_up(self, number: int, frame: FrameType | None) -> None:
        """Stop, as SIGTERM does, because the terminal was closed."""
        self.should_exit = True  # at all times: there is no loop before `run` and after it
        with suppress(RuntimeError):
            self.handle_exit(signal.SIGTERM, frame)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop. Called by a signal."""
        # It may arrive in the middle of anything; the loop handles it in order.
        asyncio.get_running_loop().call_soon_threadsafe(self._stop)
        super().handle_exit(sig, frame)

    def _stop(self) -> None:
        self._on_stop()
        self._state.models.stop_admitting()


def make_server(app: Starlette, config: ServerConfig, **calls: Callable[[], None]) -> Server:
    """A server for an application; `run(sockets=[…])` serves on sockets that are already bound.

    Args:
        calls: `on_listening` and `on_stop` of `Server`.
    """
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(config.shutdown_timeout)),
    )
    return Server(settings, find_state(app, ServerState), **calls)


def bind(config: ServerConfig) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Who connects is kept waiting until `run` accepts.

    Raises:
        InvalidRequestError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)  # only now nobody else has the port, too
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InvalidRequestError(
            f"cannot listen on {config.host}, port {config.port}: {error.strerror or error}; {_advice(error)}"
        ) from None
    return listener


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "is another server running there? Choose another --port (0 takes a free one)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "choose a --port above 1023 (0 takes a free one)"
    return "--host must be a name or an address of this machine"


def run(
    app: Starlette,
    config: ServerConfig,
    listener: socket.socket,
    *,
    on_end: Callable[[], None] = lambda: None,
    **calls: Callable[[], None],
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; a second SIGINT does not wait for running requests.

    Args:
        on_end: called at the end, even if the process then exits at once, as it does while a model is loading.
        calls: see `make_server`.

    Raises:
        Glm4Error: an app cannot start.
    """
    # uvicorn raises the signal again when it is done; here the exit should be quiet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = make_server(app, config, **calls)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
        signal.signal(signal.SIGHUP, server.hang_up)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # how uvicorn reports a failed start
        if app.state.start_error is None:
            raise
    finally:
        on_end()
    error: Glm4Error | None = app.state.start_error
    if find_state(app, ServerState).models.is_loading or server.workers.unfinished:
        # A thread that loads a model or tokenizes a text cannot be interrupted, and must not be in native code when
        # the interpreter shuts down.
        if error is not None:
            log.error("%s", error)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a terminal that is closed
                stream.flush()
        os._exit(0 if error is None else error.exit_code)
    if error is not None:
        raise error
