"""HTTP/1.1 to one server with the standard library: one connection per request, certificates checked.

Redirects are refused and proxy environment variables ignored. Lines and bodies are bounded. A server's error message
is shortened, made printable and stripped of the API key.

Not covered: the caller watches how long a server takes (`Exchange.interrupt`); the key goes over plain http if the
address says http.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from glm4.backends.remote.options import KEY_VARIABLE, RemoteOptions
from glm4.errors import Glm4Error, InvalidRequestError, RemoteError, RemoteUnavailableError
from glm4.version import __version__

MAX_LINE = 4 << 20
MAX_BODY = 16 << 20
_MAX_ERROR_BODY = 64 << 10
_MAX_MESSAGE = 300
_BUSY = (408, 425, 429, 502, 503, 504)
# For mid-stream errors without a status.
_STATUS = {"invalid_request_error": 400, "rate_limit_error": 429, "overloaded_error": 503, "timeout_error": 504}


class Server:
    """The server that requests go to, and how its failures are reported.

    Attributes:
        name: its address, for error messages.
    """

    def __init__(self, options: RemoteOptions) -> None:
        parts = urlsplit(options.base_url)
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._key = options.api_key
        self._connect_timeout = options.connect_timeout
        self.name = f"{parts.scheme}://{parts.netloc}{self._path}"

    def connection(self) -> HTTPConnection:
        """A connection that is not open yet."""
        if self._secure:
            context = ssl.create_default_context()
            return HTTPSConnection(self._host, self._port, timeout=self._connect_timeout, context=context)
        return HTTPConnection(self._host, self._port, timeout=self._connect_timeout)

    def target(self, path: str) -> str:
        """The path of a route, as it appears in the request line."""
        return self._path + path

    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return {"Connection": "close", "Content-Type": "application/json", "User-Agent": f"glm4/{__version__}", **key}

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float) -> Any:
        """Request a JSON document.

        Args:
            timeout: seconds without data before giving up.

        Raises:
            RemoteError, InvalidRequestError: as `Exchange.send`; or the response is not JSON.
        """
        exchange = Exchange(self, timeout)
        try:
            data = exchange.send(method, path, body).read(MAX_BODY + 1)
            return json.loads(data if len(data) <= MAX_BODY else b"")
        except (OSError, HTTPException) as error:  # first, because a certificate error is also a ValueError
            raise self.broken(error) from None
        except (ValueError, RecursionError):
            raise RemoteError(f"{self.name}{path} does not answer with JSON; is this the right address?") from None
        finally:
            exchange.close()

    def broken(self, error: Exception) -> RemoteError:
        """The error for a failed connection."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteError(f"the certificate of {self.name} cannot be verified: {error.verify_message}")
        if isinstance(error, ssl.SSLError):
            return RemoteError(f"no secure connection to {self.name} ({error.reason}); does it speak https?")
        if isinstance(error, TimeoutError):
            return RemoteUnavailableError(f"{self.name} does not answer in time")
        if isinstance(error, (OSError, HTTPException)):
            reason = getattr(error, "strerror", None) or type(error).__name__
            return RemoteUnavailableError(f"the connection to {self.name} failed: {self.printable(str(reason))}")
        return RemoteError(f"talking to {self.name} failed: {type(error).__name__}")

    def refusal(self, status: int, body: bytes, retry_after: str | None = None) -> Glm4Error:
        """The error for an error response."""
        message, param = _error_of(body)
        said = f"HTTP {status}" + (f": {self.printable(message)}" if message else "")
        if 300 <= status < 400:
            return RemoteError(f"{self.name} redirects ({said}); redirects are not followed, so give the final address")
        if status in (401, 403):
            return RemoteError(f"{self.name} refuses access ({said}); set api_key or {KEY_VARIABLE}")
        if status in _BUSY:
            seconds = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0
            return RemoteUnavailableError(f"{self.name} is busy or not ready ({said})", retry_after=seconds)
        if 400 <= status < 500:
            # Without the address: `glm4 serve` in front of that server passes this message on to its clients.
            return InvalidRequestError(f"the remote server refuses the request ({said})", param=param)
        return RemoteError(f"{self.name} has failed ({said})")

    def refusal_event(self, event: Mapping[str, Any]) -> Glm4Error:
        """The error for an error event in the middle of a stream."""
        error = event["error"]
        code, kind = (error.get("code"), error.get("type")) if isinstance(error, Mapping) else (None, None)
        status = code if type(code) is int and 400 <= code < 600 else _STATUS.get(str(kind), 500)
        return self.refusal(status, json.dumps(event).encode())

    def printable(self, text: str) -> str:
        """Server text made safe for a terminal: one short line, without the key."""
        text = text if self._key is None else text.replace(self._key, "***")
        text = "".join(character if character.isprintable() else " " for character in text[: 2 * _MAX_MESSAGE])
        text = " ".join(text.split())
        return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"


class Exchange:
    """One request and its response. `interrupt` works from any thread and ends any wait; the rest is single-threaded.

    Args:
        timeout: seconds without data, once connected, before giving up; None waits forever.
    """

    def __init__(self, server: Server, timeout: float | None = None) -> None:
        self._server = server
        self._timeout = timeout
        self._connection = server.connection()
        self._response: HTTPResponse | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._interrupted = False

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> HTTPResponse:
        """Send the request; the returned response has status 200.

        Raises:
            RemoteError, InvalidRequestError: the server refused it; see `Server.refusal`.
            OSError, HTTPException: the connection failed, or was interrupted.
        """
        self._connection.connect()
        with self._lock:
            self._socket = self._connection.sock
            if self._interrupted:
                raise ConnectionAbortedError
        self._socket.settimeout(self._timeout)
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, self._server.target(path), data, self._server.headers())
        self._response = response = self._connection.getresponse()
        if response.status != 200:
            shown = response.read(_MAX_ERROR_BODY)
            raise self._server.refusal(response.status, shown, response.getheader("Retry-After"))
        return response

    def events(self) -> Iterator[bytes]:
        """The data of each server-sent event of the response, without comments.

        Raises:
            RemoteError: the response is not an event stream, or a line is too long.
            OSError, HTTPException: the connection failed, or was interrupted.
        """
        assert self._response is not None  # noqa: S101 (`send` came first)
        if not self._response.getheader("Content-Type", "").startswith("text/event-stream"):
            raise RemoteError(f"{self._server.name} does not stream its answers; the remote backend needs that")
        while line := self._response.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise RemoteError(f"{self._server.name} sent a line of more than {MAX_LINE} bytes")
            if line.startswith(b"data:"):
                yield line[5:].strip()

    def hurry(self, timeout: float) -> None:
        """From now on give up after `timeout` seconds without data."""
        if self._socket is not None:
            self._socket.settimeout(timeout)

    def interrupt(self) -> None:
        """End any wait, current or future, and close the connection."""
        with self._lock:
            self._interrupted = True
            if self._socket is not None:
                # Not SSLSocket's own method, which drops the encryption while another thread is reading.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


def _error_of(body: bytes) -> tuple[str, str | None]:
    """(message, request field) of an error body, in any server's format."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace"), None
    if isinstance(value, Mapping) and isinstance(value.get("error"), Mapping):
        value = value["error"]
    if not isinstance(value, Mapping):
        return json.dumps(value), None
    said = value.get("message") or value.get("error") or value.get("detail") or ""
    param = value.get("param")
    # The token route has the options one level deeper than the caller gave them.
    field = param.removeprefix("sampling_params.") if isinstance(param, str) else None
    return said if isinstance(said, str) else json.dumps(said), field
