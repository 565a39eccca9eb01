"""What every request passes through: request ids and the log, browsers' origins, the Host header, API keys.

Not covered: encryption and per-client rate limits. Put a reverse proxy in front for those.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm4.server.config import ServerConfig
from glm4.server.cookies import SESSION, TOKEN_HEADER, Cookies, may_act
from glm4.server.errors import ANTHROPIC_PREFIX, ApiError, current_request, error_response
from glm4.server.identity import KEY_ID, key_id
from glm4.server.memory import BODY_MEMORY, BodyMemory
from glm4.server.paths import tidy_path

TRUSTED = "glm4.trusted"
"""In a request's state: to be called once its connection has shown a valid key, or none is needed."""

access_log = logging.getLogger("glm4.access")

_NOTHING_SENT = 499  # as logged: the client hung up before there was an answer
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Gives every request an id (the client's own, if it is harmless), returns it, and logs one line at the end.

    The line has no query string, no body and no header except the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        current_request.set(request_id)
        started, status = time.monotonic(), _NOTHING_SENT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if scope["path"].startswith(ANTHROPIC_PREFIX):
                    headers["request-id"] = request_id  # where Anthropic's clients look for it
            await send(message)

        try:
            tidy_path(scope)
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # Starlette's handler of last resort is outside this class and would answer in plain text.
            response = error_response(Request(scope), error)
            if status == _NOTHING_SENT:
                await response(scope, receive, send_with_id)
        finally:
            memory: BodyMemory | None = scope["state"].get(BODY_MEMORY)
            if memory is not None:
                memory.release()
            milliseconds = 1000 * (time.monotonic() - started)
            access_log.info(
                "%s %s %d %.0f ms",
                scope["method"],
                _printable(scope["path"]),
                status,
                milliseconds,
                extra={"request_id": request_id},
            )


def _printable(path: str) -> str:
    """A path that cannot forge log lines."""
    return path[:200] if path.isprintable() else repr(path[:200])


class Origins:
    """CORS: only listed origins may read answers in a browser; preflights are answered here.

    `localhost` in the list allows every page that this machine itself serves, on any port.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._allowed = config.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        sent = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = sent.get("origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        headers = {"access-control-allow-origin": origin, "vary": "Origin"} if self._may_read(origin) else {}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in sent:
            method = sent["access-control-request-method"]
            await _answer_preflight(headers, sent.get("access-control-request-headers", ""), send, method)
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self._app(scope, receive, send_with_origin)

    def _may_read(self, origin: str) -> bool:
        if origin in self._allowed or "*" in self._allowed:
            return True
        try:
            return "localhost" in self._allowed and _is_loopback(urlsplit(origin).netloc)
        except ValueError:  # not a URL
            return False


async def _answer_preflight(headers: dict[str, str], asked: str, send: Send, method: str) -> None:
    """Answer a browser's preflight; without the first header the browser goes no further.

    Args:
        method: is named, too, if it is PATCH or PUT; who does not ask for them gets llama.cpp's answer, which its
            clients compare.
    """
    if headers:
        further = f"{method}, " if method in ("PATCH", "PUT") else ""
        headers |= {
            "access-control-allow-methods": f"GET, POST, {further}DELETE, OPTIONS",
            "access-control-allow-headers": asked if asked.isascii() and asked.isprintable() else "",
            "access-control-max-age": "600",
        }
    raw = [(key.encode(), value.encode()) for key, value in {**headers, "content-length": "0"}.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


def _is_loopback(netloc: str) -> bool:
    """True for names and addresses of this machine, with or without a port."""
    name = netloc.lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.rpartition(":")[0] or name
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class HostCheck:
    """Refuses Host headers that are not ours: a web page whose name was rebound to this machine sends its own name.

    Only while the server listens on loopback, where keys are optional. Elsewhere keys keep others out.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._allowed = frozenset(host.lower() for host in config.allowed_hosts)
        self._active = config.is_loopback and "*" not in self._allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] == "http" and self._active and not self._known(Headers(scope=scope).get("host", "")):
            message = "the Host header names another machine; allow it with --allowed-host"
            error = ApiError(421, message, code="bad_host")
            await error_response(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known(self, header: str) -> bool:
        name = header.lower()
        name = name[1 : name.find("]")] if name.startswith("[") else name.rpartition(":")[0] or name
        return not name or name in self._allowed or _is_loopback(header)


class Keys:
    """API keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`, or the cookie of a browser's session.

    Keys are compared in constant time. A request that has a key is judged by that alone, whatever cookie it has.

    Args:
        public: paths open without one.
        cookies: sessions of browsers; None if there are none.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], public: Collection[str], cookies: Cookies | None = None
    ) -> None:
        self._app = app
        self._public = public
        self._keys = [(key.encode(), key_id(key)) for key in keys]
        self._cookies = cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._keys:
            error = self._identify(scope)
            if error is not None and scope["path"] not in self._public:
                await error_response(Request(scope), error)(scope, receive, send)
                return
        if (KEY_ID in scope["state"] or not self._keys) and TRUSTED in scope["state"]:
            scope["state"][TRUSTED]()
        await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> ApiError | None:
        """Note whose request it is; else, why nobody's."""
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            offered.append(token.strip())
        if any(offered) or self._cookies is None:
            # Every key is compared, so that the time does not reveal which one was close.
            found = [
                id_ for key, id_ in self._keys for one in offered if one and hmac.compare_digest(key, one.encode())
            ]
            if found:
                scope["state"][KEY_ID] = found[0]
                return None
        elif (session := self._cookies.find(headers)) is not None:
            if not may_act(session, scope["method"], headers):
                message = f"another page may have sent this: the header {TOKEN_HEADER} is missing or not the session's"
                return ApiError(403, message, code="cross_site")
            scope["state"] |= {KEY_ID: session.key_id, SESSION: session}
            return None
        return ApiError(
            401, "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
