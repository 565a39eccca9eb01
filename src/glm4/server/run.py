"""`run`: an application on a socket, with the limits and the orderly end that uvicorn leaves to its user."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm4.errors import InvalidRequestError
from glm4.server.config import ServerConfig
from glm4.server.state import ServerState
from glm4.server.streaming import ABORT

HEADER_SECONDS = 20.0
CLOSE_SECONDS = 120.0
MAX_HEADER_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = 15


class _Protocol(H11Protocol):
    """Ends connections that uvicorn would keep for ever: no request begins, or the client never reads the response."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._set_timer(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _close_if_idle(self) -> None:
        begun = cast("object | None", self.cycle)  # declared as never None, and None until the first request
        if begun is None and not self.transport.is_closing():
            self.transport.close()

    def _abort_later(self) -> None:
        # `close` first sends what is in the buffer, which takes for ever when the client does not read.
        self._set_timer(self.loop.call_later(CLOSE_SECONDS, self.transport.abort))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer


class _Server(uvicorn.Server):
    """Stops admitting the moment it is told to stop, and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal may come in the middle of anything; the loop does it in order.
        asyncio.get_running_loop().call_soon_threadsafe(self._state.models.stop_admitting)
        super().handle_exit(sig, frame)


def make_server(app: Starlette, config: ServerConfig) -> uvicorn.Server:
    """A server for an application; `run(sockets=[…])` serves on sockets that are bound already."""
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(config.shutdown_timeout)),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    return _Server(settings, app.state.glm4)


def bind(config: ServerConfig) -> socket.socket:
    """The socket to listen on; port 0 takes a free one.

    Raises:
        InvalidRequestError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot listen on {config.host}, port {config.port}: {error.strerror or error}; is another server running"
            " there? Choose another --port (0 takes a free one)"
        ) from None
    return listener


def run(app: Starlette, config: ServerConfig, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for running requests."""
    # uvicorn raises the signal again once it is done; the end we want is a quiet one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    make_server(app, config).run(sockets=[listener])
    if app.state.glm4.models.is_loading:
        # The thread that reads a model must not meet the end of the interpreter in the middle of native code.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
