"""`run`: an application on a socket, with the limits and the orderly shutdown that uvicorn leaves to its user."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from glm4.errors import Glm4Error, InvalidRequestError
from glm4.server.config import ServerConfig
from glm4.server.connection import Connection
from glm4.server.errors import log
from glm4.server.state import ServerState, find_state

MAX_HEADER_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = 15


class _Server(uvicorn.Server):
    """Stops admitting requests as soon as it is told to stop, and exits with code 0."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal may arrive in the middle of anything; the loop handles it in order.
        asyncio.get_running_loop().call_soon_threadsafe(self._state.models.stop_admitting)
        super().handle_exit(sig, frame)


def make_server(app: Starlette, config: ServerConfig) -> uvicorn.Server:
    """A server for an application; `run(sockets=[…])` serves on sockets that are already bound."""
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=partial(Connection, header_timeout=config.header_timeout),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(config.shutdown_timeout)),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    return _Server(settings, find_state(app, ServerState))


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
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
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


def run(app: Starlette, config: ServerConfig, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for running requests.

    Raises:
        Glm4Error: an app cannot start.
    """
    # uvicorn raises the signal again when it is done; here the exit should be quiet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        make_server(app, config).run(sockets=[listener])
    except SystemExit:  # how uvicorn reports a failed start
        if app.state.start_error is None:
            raise
    error: Glm4Error | None = app.state.start_error
    if find_state(app, ServerState).models.is_loading:
        # The thread that loads a model must not be in native code when the interpreter shuts down.
        if error is not None:
            log.error("%s", error)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if error is None else error.exit_code)
    if error is not None:
        raise error
