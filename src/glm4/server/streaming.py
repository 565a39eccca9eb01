"""`EventStream`: a response of server-sent events that notices when its client stops reading.

Comments fill silence, so that proxies keep the connection open; a client that hangs up ends the request within one step
of the engine; one that stays but stops reading is disconnected after a while. Until then its chunks are merged
(`AsyncLLM`), so it takes no more memory than its own text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glm4.server.config import ServerConfig
from glm4.server.errors import ApiError, as_api_error

_T = TypeVar("_T")

ABORT = "glm4.abort"
"""In a request's state: closes its connection without sending what is still buffered."""

DONE = b"data: [DONE]\n\n"
_LINE_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
_COMMENT = b": keep-alive\n\n"


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event with a JSON object."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def json_line(data: Mapping[str, Any]) -> bytes:
    """One line of a stream of JSON lines. Characters at which clients break lines are escaped, as Go does it."""
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{line.translate(_LINE_BREAKS)}\n".encode()


def openai_failure(error: BaseException) -> bytes:
    """How an OpenAI stream ends when something fails in the middle."""
    return event(as_api_error(error).openai()) + DONE


def anthropic_failure(error: BaseException) -> bytes:
    """How an Anthropic stream ends when something fails in the middle."""
    return event(as_api_error(error).anthropic(), "error")


def ollama_failure(error: BaseException) -> bytes:
    """How an Ollama stream ends when something fails in the middle."""
    return json_line(as_api_error(error).ollama())


class EventStream(Response):
    """Sends what an asynchronous generator yields, and always closes the generator.

    Args:
        events: yields encoded events.
        failure: the last event of a stream whose generator failed.
        silence: sent to keep a silent connection open.
        media_type: of the response.
        config: how long a stream may be silent before that, and how long a client may leave its connection unread.
        on_close: awaited at the end.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        failure: Callable[[BaseException], bytes] = openai_failure,
        silence: bytes = _COMMENT,
        media_type: str = "text/event-stream",
        config: ServerConfig,
        on_close: Callable[[], Awaitable[None]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        sent = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(headers=sent, media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._failure = failure
        self._silence = silence
        self._keep_alive = config.keep_alive
        self._stall_timeout = config.stall_timeout
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
                if not await self._run(send) and (abort := scope.get("state", {}).get(ABORT)) is not None:
                    abort()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                if self._on_close is not None:
                    await self._on_close()

    async def _run(self, send: Send) -> bool:
        """Send everything; False if the client stopped reading."""

        async def write(body: bytes, more: bool = True) -> None:
            with anyio.fail_after(self._stall_timeout):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        pending: asyncio.Future[bytes] | None = None
        try:
            with anyio.fail_after(self._stall_timeout):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                pending = pending or asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait({pending}, timeout=self._keep_alive)
                if not done:
                    await write(self._silence)
                    continue
                finished, pending = pending, None
                try:
                    body = finished.result()
                except StopAsyncIteration:
                    break
                except Exception as error:  # the log may say more than the client is told
                    await write(self._failure(error))
                    break
                await write(body)
            await write(b"", more=False)
        except TimeoutError:
            return False  # the client no longer reads
        finally:
            if pending is not None:
                pending.cancel()
                with anyio.CancelScope(shield=True):  # its cleanup may take several turns of the loop
                    await asyncio.wait({pending})
        return True


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def until_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Run something for a client; cancel it if the client disconnects.

    The request's body must have been read.

    Raises:
        ApiError: the client has disconnected (so this will not be read).
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client closed the connection")
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
