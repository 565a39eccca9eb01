"""The HTTP client that the library's streamable HTTP transport uses, with bounds on what a server may send.

The URL is the administrator's, so private addresses are allowed. The library follows redirects only within the same
scheme, host and port (or from http to https of the same host), and names the others in its error; nothing a server
says leads to another host. Not covered: a proxy that the environment names (HTTPS_PROXY) sees the traffic.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.process import MAX_MESSAGE

if TYPE_CHECKING:
    import httpx2

_CONNECT = 20.0  # seconds


def open_client(server: McpServer, on_status: Callable[[int], None]) -> httpx2.AsyncClient:
    """A client with the server's headers; to be used as an async context manager.

    Args:
        on_status: gets every HTTP status; the library's errors do not say it.
    """
    import httpx2

    class _Bounded(httpx2.AsyncByteStream):
        """A body that ends with an error when it becomes too long. Event streams are bounded by event instead."""

        def __init__(self, stream: httpx2.AsyncByteStream) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._stream:
                size += len(chunk)
                if size > MAX_MESSAGE:
                    raise httpx2.ReadError(f"sent a message of more than {MAX_MESSAGE >> 20} MB")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: httpx2.Response) -> None:
        on_status(response.status_code)
        if response.headers.get("content-encoding", "identity") != "identity":  # we ask for none; it may be a bomb
            await response.aclose()
            raise httpx2.DecodingError("sent a compressed answer, although it was asked not to")
        is_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        if not is_events and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _Bounded(response.stream)

    return httpx2.AsyncClient(
        headers={**server.headers, "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(_CONNECT, read=max(300.0, server.timeout + 10)),
        event_hooks={"response": [bound]},
    )
