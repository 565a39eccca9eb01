"""`Connection`: uvicorn's HTTP/1.1, with a time limit for every client that stalls or misbehaves.

uvicorn waits forever for headers that arrive a byte at a time, for the rest of a body whose request is answered, and
for a client to read its response; and it answers malformed HTTP in plain text.

Not covered: how many connections one client opens. Put a reverse proxy in front for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm4.server.errors import ApiError
from glm4.server.streaming import ABORT

LINGER_SECONDS = 10.0
"""For the rest of a body after its request was refused: closing at once would lose the response in transit."""
CLOSE_SECONDS = 120.0
"""For a client to read what was sent before the connection is closed."""


class Connection(H11Protocol):
    """One client's connection.

    Args:
        header_timeout: seconds for all headers of a request, from its first byte (or the start of the connection).
    """

    def __init__(self, *args: Any, header_timeout: float, **options: Any) -> None:
        super().__init__(*args, **options)
        # `RequestLog` writes our line; uvicorn's includes the query, and appears whenever the logger has a handler.
        self.access_log = False
        self._header_timeout = header_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._awaits_headers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timer."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        super().connection_lost(exc)
        self._set_timer(None)

    def data_received(self, data: bytes) -> None:
        """Pass data on; once headers have begun they must be complete in time, however often a byte of them arrives."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is not h11.IDLE:
            if self._awaits_headers:
                self._awaits_headers = False
                self._set_timer(None)
        elif not self._awaits_headers and self.conn.trailing_data[0]:
            self._await_headers()

    def on_response_complete(self) -> None:
        """After a response, make sure that the rest of its connection ends."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self.conn.their_state is h11.SEND_BODY:
            self._set_timer(LINGER_SECONDS, self._end_lingering, self.cycle)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP."""
        self._refuse(ApiError(400, "this is not valid HTTP/1.1", code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, if nothing has been sent yet, and close."""
        cycle = cast("Any | None", self.cycle)  # declared as never None, but None until the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # to the application, the client is gone
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = JSONResponse(error.openai(), headers={"Connection": "close"})
            head = h11.Response(status_code=error.status, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._abort_later()

    def _await_headers(self) -> None:
        self._awaits_headers = True
        self._set_timer(self._header_timeout, self._end_waiting)

    def _end_waiting(self) -> None:
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:
            self.transport.close()  # no request was started
            return
        self._refuse(ApiError(408, f"the request's headers did not arrive within {self._header_timeout:g} seconds"))

    def _end_lingering(self, answered: object) -> None:
        if self.cycle is answered and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        # `close` first sends what is in the buffer, which takes forever if the client does not read.
        self._set_timer(CLOSE_SECONDS, self.transport.abort)

    def _set_timer(self, seconds: float | None, action: Callable[..., None] | None = None, *args: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or action is None else self.loop.call_later(seconds, action, *args)
