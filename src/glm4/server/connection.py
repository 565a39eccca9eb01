"""`Connection`: uvicorn's HTTP/1.1, with a time limit for every client that stalls or misbehaves.

uvicorn waits forever for headers that arrive a byte at a time, for the rest of a body whose request is answered, and
for a client to read its response; it answers malformed HTTP in plain text; and it closes connections whose body it has
not read, so that the client never sees the response.

h11 reads some requests that a proxy in front may read otherwise, and so see one request where it sees two: those are
refused here. Not covered: how many connections one client opens. Put a reverse proxy in front for that.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, cast

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm4.server.errors import ApiError
from glm4.server.middleware import TRUSTED
from glm4.server.streaming import ABORT

LINGER_SECONDS = 10.0
"""For the rest of a body after its request was refused: closing at once would lose the response in transit."""
CLOSE_SECONDS = 120.0
"""For a client to read what was sent before the connection is closed."""
MAX_HEADER_BYTES = 64 << 10
MAX_HEADER_FIELDS = 200


class Requests(h11.Connection):
    """h11's connection, stricter about the heads of requests."""

    def next_event(self) -> Any:
        """The next event; see h11."""
        head = b""
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0][: MAX_HEADER_BYTES + 4].lstrip(b"\r\n")
            end = head.find(b"\r\n\r\n")
            head = head[: end + 2] if end >= 0 else head
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check_head(head, event)
        return event


def _check_head(head: bytes, request: h11.Request) -> None:
    """Refuse what h11 takes.

    Raises:
        h11.RemoteProtocolError: with the status as its hint.
    """
    if len(head) > MAX_HEADER_BYTES or len(request.headers) > MAX_HEADER_FIELDS:
        raise h11.RemoteProtocolError("too large", 431)
    if not head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") or b"\n " in head or b"\n\t" in head:
        raise h11.RemoteProtocolError("a line of the headers is continued, or does not end in CR LF")
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            raise h11.RemoteProtocolError("the body has two lengths: Content-Length and Transfer-Encoding")
        if request.http_version < b"1.1":
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")


class _LingeringTransport:
    """A transport whose `close` lets the client finish sending: it might not see the response otherwise."""

    def __init__(self, transport: asyncio.Transport, owner: Connection) -> None:
        self._transport = transport
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close, or begin to."""
        if not self._owner.linger():
            self._transport.close()


class Connection(H11Protocol):
    """One client's connection.

    Args:
        header_timeout: seconds for all headers of a request, from its first byte (or the start of the connection).
        on_change: called when it has ended, or has become idle.

    Attributes:
        is_trusted: it has shown a valid key, or the server needs none.
        idle_since: when it was opened, or its last response ended; time of the event loop.
    """

    def __init__(
        self, *args: Any, header_timeout: float, on_change: Callable[[], None] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.conn = Requests(h11.SERVER, MAX_HEADER_BYTES)
        # `RequestLog` writes our line; uvicorn's includes the query, and appears whenever the logger has a handler.
        self.access_log = False
        self._header_timeout = header_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._awaits_headers = False
        self._lingers = False
        self._on_change = on_change
        self.is_trusted = False
        self.idle_since = self.loop.time()

    @property
    def is_idle(self) -> bool:
        """True while no request of this connection is being answered."""
        cycle = cast("Any | None", self.cycle)  # declared as never None, but None until the first request
        return cycle is None or cycle.response_complete or cycle.disconnected

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timer."""
        super().connection_made(cast(asyncio.Transport, _LingeringTransport(transport, self)))
        self.app_state = {**self.app_state, ABORT: transport.abort, TRUSTED: self._trust}
        self._await_headers()

    def evict(self) -> None:
        """Close this idle connection at once: its place is needed."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer, and make room for another connection."""
        super().connection_lost(exc)
        self._set_timer(None)
        self._changed()

    def data_received(self, data: bytes) -> None:
        """Pass data on; once headers have begun they must be complete in time, however often a byte of them arrives."""
        if self._lingers:
            return
        super().data_received(data)
        if self._lingers or self.transport.is_closing():
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
        self.idle_since = self.loop.time()
        self._changed()
        if self._lingers:
            return
        if self.transport.is_closing():
            self._abort_later()
        elif self.conn.their_state is h11.SEND_BODY:
            self._set_timer(LINGER_SECONDS, self._end_lingering, self.cycle)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP, or not taken. Called while the parser's error is handled."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        message = f"this is not valid HTTP/1.1: {error}"
        if status == 431:
            message = f"the headers have more than {MAX_HEADER_BYTES >> 10} KB, or more than {MAX_HEADER_FIELDS} fields"
        self._refuse(ApiError(status, message, code="invalid_http"))

    def linger(self) -> bool:
        """Read the rest of a body without using it, if there is one, and then close; False if there is none."""
        if self._lingers or self.conn.their_state not in (h11.SEND_BODY, h11.ERROR) or self.transport.is_closing():
            return False
        self._lingers = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_timer(LINGER_SECONDS, self.transport.abort)
        return True

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _trust(self) -> None:
        self.is_trusted = True

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, if nothing has been sent yet, and close."""
        cycle = cast("Any | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # to the application, the client is gone
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = JSONResponse(error.openai(), headers={"Connection": "close"})
            head = h11.Response(status_code=error.status, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if not self._lingers:
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
            self._lingers = True  # long enough
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        # `close` first sends what is in the buffer, which takes forever if the client does not read.
        self._set_timer(CLOSE_SECONDS, self.transport.abort)

    def _set_timer(self, seconds: float | None, action: Callable[..., None] | None = None, *args: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or action is None else self.loop.call_later(seconds, action, *args)
