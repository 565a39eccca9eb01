"""`Connection`: one MCP server, connected when it is first needed and again after it broke.

One task per server enters and leaves the library's client, as its cancel scopes demand; what is to be done comes to it
through a queue. All servers share one thread. Callers are synchronous and on any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.job import Job, is_closed
from glm4.agent.mcp.loop_thread import LOOP_THREAD, LoopThread
from glm4.agent.mcp.process import MAX_MESSAGE, StdioTransport
from glm4.agent.mcp.text import one_line
from glm4.errors import ToolServerError
from glm4.version import __version__

if TYPE_CHECKING:
    import mcp_types as types
    from mcp import Client

_T = TypeVar("_T")

log = logging.getLogger("glm4.mcp")

LIST_SECONDS = 300.0
"""A list of tools is asked for again after this time, and whenever the server says that it has changed."""

MAX_TOOLS = 128
_MAX_PAGES = 100
_RELISTEN = 5.0
_SETTLED = 60.0  # a connection that held so long was a good one
_MOST_BACKOFF = 60.0
_CLOSE_PATIENCE, _CLOSE_SECONDS = 4.0, 10.0
_UNWINDING = 6.0  # a server that did not start in time is ended before that is said
_GRACE = 5.0  # after a deadline that the library should have kept
_MAX_ERROR = 1000  # characters


class _Ended:
    """In the queue: the connection that it belongs to has ended."""


class _SessionOverError(Exception):
    """The server has forgotten our session, and has not run the call."""


class Connection:
    """The connection to one server. Thread-safe.

    Args:
        loops: where it runs.
    """

    def __init__(self, server: McpServer, loops: LoopThread = LOOP_THREAD) -> None:
        self.server = server
        self._loops = loops
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: asyncio.Task[None] | None = None
        self._finished = threading.Event()
        self._closed = False
        # What follows belongs to the loop's thread; others only read.
        self._queue: asyncio.Queue[Job[Any] | _Ended] = asyncio.Queue()
        self._tools: list[types.Tool] = []
        self._fresh_until = 0.0
        self._failures, self._not_before, self._problem = 0, 0.0, ""
        self._status = 0  # the last HTTP error
        self.protocol = ""
        """The version that was negotiated."""

    def tools(self) -> list[types.Tool]:
        """What the server offers; connects if need be.

        Raises:
            ToolServerError: it cannot be reached, or does not answer in time.
        """
        if time.monotonic() < self._fresh_until:
            return self._tools
        return self._do(Job(self._listed), time.monotonic() + self.server.startup + _UNWINDING)

    def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        *,
        deadline: float,
        cancelled: threading.Event,
        note: Callable[[str], None],
    ) -> types.CallToolResult:
        """Call a function.

        Args:
            deadline: `time.monotonic()`; then the server is told that the call is over.
            cancelled: ends it within a second.
            note: gets what the server says on its progress, on this thread.

        Raises:
            ToolServerError: the server broke, refused, or took too long; the message is meant for the model, too.
        """
        for attempt in (1, 2):
            job = Job(lambda client, job: self._called(client, job, tool, arguments, deadline))
            try:
                return self._do(job, deadline, cancelled, note)
            except _SessionOverError:
                if attempt == 2:
                    raise self._error("ends every session at once") from None
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the connection and the server's processes, within 10 seconds. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop = self._loop
        if loop is None:
            return
        atexit.unregister(self.close)
        loop.call_soon_threadsafe(self._leave, loop)
        if self._finished.wait(_CLOSE_SECONDS):
            self._loops.release()
        else:
            log.warning("MCP server %r does not end", self.server.name)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._owner is not None:
            self._owner.cancel()
            loop.call_later(_CLOSE_PATIENCE, self._owner.cancel)  # an HTTP server may not answer to our goodbye

    # On the caller's thread.

    def _do(
        self,
        job: Job[_T],
        deadline: float,
        cancelled: threading.Event | None = None,
        note: Callable[[str], None] | None = None,
    ) -> _T:
        with self._lock:
            if self._closed:
                raise self._error("was closed")
            if self._loop is None:
                self._loop = self._loops.acquire()
                self._loop.call_soon_threadsafe(self._begin)
                atexit.register(self.close)
            loop = self._loop
            loop.call_soon_threadsafe(self._queue.put_nowait, job)
        try:
            while not job.wait(0.05, note):
                if cancelled is not None and cancelled.is_set():
                    raise self._error("was called, and the call was cancelled")
                if time.monotonic() > deadline + _GRACE or self._finished.is_set():
                    raise self._error("did not answer in time")
        finally:
            if not job.done:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(job.cancel)
        return job.result()

    # In the event loop.

    def _begin(self) -> None:
        self._owner = asyncio.ensure_future(self._own())

    async def _own(self) -> None:
        try:
            while not self._closed:
                job = await self._queue.get()
                if isinstance(job, _Ended) or job.done:
                    continue
                wait = self._not_before - time.monotonic()
                if wait > 0:
                    again = f"the next attempt is possible in {wait:.0f} seconds"
                    job.fail(ToolServerError(f"{self._problem} ({again})"))
                else:
                    await self._serve(job)
        except asyncio.CancelledError:
            pass
        finally:
            while not self._queue.empty():
                job = self._queue.get_nowait()
                if isinstance(job, Job):
                    job.fail(self._error("was closed"))
            self._finished.set()

    async def _serve(self, first: Job[Any]) -> None:
        """Connect, and do what comes until the connection ends."""
        ended, began = _Ended(), time.monotonic()
        jobs, later = [first], list[Job[Any]]()
        transport: StdioTransport | None = None
        if self.server.command:
            transport = StdioTransport(self.server, lambda: self._queue.put_nowait(ended))
        error: Exception | None = None
        self._status = 0
        try:
            async with AsyncExitStack() as stack:
                with self._started_in_time():
                    client = await self._connect(stack, transport)
                    await self._refresh(client)
                log.info("MCP server %r: connected, protocol %s", self.server.name, self.protocol)
                stack.push_async_callback(self._stop, jobs)
                self._listen(client, jobs)
                first.start(client, lambda: self._queue.put_nowait(ended))
                while (job := await self._queue.get()) is not ended:
                    if not isinstance(job, Job) or job.done:
                        continue
                    if transport is not None and transport.leaving:
                        later.append(job)  # for the next one; answers of this one may still come
                    else:
                        jobs[:] = [one for one in jobs if not one.done] + [job]
                        job.start(client, lambda: self._queue.put_nowait(ended))
        except asyncio.CancelledError:
            if self._closed:
                raise
        except Exception as caught:  # whatever the library, the server or its answers come to ends this connection only
            error = caught
        finally:
            self._fresh_until = 0.0
            self._note_end(began, error, transport)
            for job in jobs:
                job.fail(ToolServerError(self._problem))
            for job in later:
                self._queue.put_nowait(job)

    def _note_end(self, began: float, error: Exception | None, transport: StdioTransport | None) -> None:
        if time.monotonic() - began > _SETTLED:
            self._failures = 0
        self._failures += 1
        wait = 0.0 if self._failures == 1 else min(_MOST_BACKOFF, 2.0 ** (self._failures - 2))
        self._not_before = time.monotonic() + wait
        state = transport.state() if transport else ""
        said = "" if error is None or (state and is_closed(_first(error))) else self._explained(error)
        self._problem = str(self._error("; ".join(filter(None, (said, state))) or "ended the connection"))
        if not self._closed:
            log.warning("%s", self._problem)

    async def _connect(self, stack: AsyncExitStack, transport: StdioTransport | None) -> Client:
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client
        from mcp_types import Implementation

        from glm4.agent.mcp.http import open_client

        chosen: Any = transport
        if transport is None:
            http = await stack.enter_async_context(open_client(self.server, self._note_status))
            chosen = streamable_http_client(self.server.url, http_client=http, max_sse_event_size=MAX_MESSAGE)
        client = Client(
            chosen,
            read_timeout_seconds=self.server.startup,
            message_handler=self._on_message,
            client_info=Implementation(name="glm4", version=__version__),
            cache=None,  # `_fresh_until` is ours
        )
        await stack.enter_async_context(client)
        self.protocol = client.protocol_version
        # The library checks results with the server's own schemas, on the thread of all servers. That proves nothing,
        # and their patterns may take forever.
        setattr(client.session, "validate_tool_result", _unchecked)  # noqa: B010  (mypy refuses the assignment)
        return client

    async def _refresh(self, client: Client) -> None:
        """Ask for the list of tools. A change that is announced meanwhile makes it stale again."""
        self._fresh_until = time.monotonic() + LIST_SECONDS
        found: list[types.Tool] = []
        try:
            cursor = None
            for _ in range(_MAX_PAGES if client.server_capabilities.tools else 0):
                page = await client.list_tools(cursor=cursor)
                found += [tool for tool in page.tools if self.server.offers(tool.name)]
                cursor = page.next_cursor
                if cursor is None or len(found) > MAX_TOOLS:
                    break
        except BaseException:
            self._fresh_until = 0.0
            raise
        if len(found) > MAX_TOOLS:
            hint = 'name those that are needed in "tools" of its configuration'
            log.warning("MCP server %r offers too many tools; %d are taken: %s", self.server.name, MAX_TOOLS, hint)
        self._tools = found[:MAX_TOOLS]

    async def _listed(self, client: Client, job: Job[list[types.Tool]]) -> list[types.Tool]:
        if time.monotonic() >= self._fresh_until:
            await self._refresh(client)
        return self._tools

    async def _called(
        self, client: Client, job: Job[types.CallToolResult], tool: str, arguments: dict[str, Any], deadline: float
    ) -> types.CallToolResult:
        from mcp.shared.exceptions import MCPError
        from mcp_types import INVALID_REQUEST, REQUEST_TIMEOUT

        left = max(0.001, deadline - time.monotonic())
        try:
            result = await client.call_tool(tool, arguments, read_timeout_seconds=left, progress_callback=job.note)
        except MCPError as error:
            if is_closed(error):
                raise
            if error.code == INVALID_REQUEST and error.message == "Session terminated":
                job.on_broken()
                raise _SessionOverError from None
            if error.code == REQUEST_TIMEOUT:
                raise self._error(f"took too long for {tool}: more than {left:.3g} seconds") from None
            raise self._error(f"{tool} was refused: {self._explained(error)}") from None
        except (ValueError, RuntimeError) as error:  # an answer that is none; claims of results that we do not know
            raise self._error(f"the answer of {tool} cannot be used: {self._explained(error)}") from None
        self._failures = 0
        return result

    def _listen(self, client: Client, jobs: list[Job[Any]]) -> None:
        """Servers of the modern protocol announce changes only to those who listen."""
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS

        offered = client.server_capabilities.tools
        if offered and offered.list_changed and self.protocol in MODERN_PROTOCOL_VERSIONS:
            job = Job(self._listens)
            jobs.append(job)
            job.start(client, lambda: None)

    async def _listens(self, client: Client, job: Job[None]) -> None:
        from mcp.client.subscriptions import SubscriptionLost
        from mcp.shared.exceptions import MCPError

        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._fresh_until = 0.0
            except (SubscriptionLost, TimeoutError):
                pass
            except MCPError as error:
                if not is_closed(error):  # it cannot; then its list is asked for from time to time
                    return
            self._fresh_until = 0.0  # a change may have been missed
            await asyncio.sleep(_RELISTEN)

    async def _on_message(self, message: object) -> None:
        from mcp_types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._fresh_until = 0.0

    def _note_status(self, status: int) -> None:
        self._status = status

    async def _stop(self, jobs: list[Job[Any]]) -> None:
        """Before the client is left: what uses it ends."""
        tasks = [job.task for job in jobs if job.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    @contextlib.contextmanager
    def _started_in_time(self) -> Iterator[None]:
        """End this task's waiting after `startup` seconds. (asyncio.timeout needs Python 3.11.)"""
        task, expired = self._owner, threading.Event()

        def expire() -> None:
            expired.set()
            if task is not None:
                task.cancel()

        handle = asyncio.get_running_loop().call_later(self.server.startup, expire)
        try:
            yield
        except asyncio.CancelledError:
            if self._closed or not expired.is_set():
                raise
            getattr(task, "uncancel", int)()
            raise TimeoutError(f"did not answer within {self.server.startup:g} seconds of its start") from None
        finally:
            handle.cancel()

    def _explained(self, error: BaseException) -> str:
        from pydantic import ValidationError

        error = _first(error)
        text = str(error) or type(error).__name__
        if isinstance(error, ValidationError):
            wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
            text = f"a message that MCP does not allow: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        if self._status >= 400 and "error response" in text:
            text += f" (HTTP status {self._status})"
        return text

    def _error(self, problem: str) -> ToolServerError:
        name = one_line(self.server.name, 64)
        return ToolServerError(f"MCP server '{name}' ({self.server.place}): {one_line(problem, _MAX_ERROR)}")


def _first(error: BaseException) -> BaseException:
    """Of an exception group, which Python 3.10 does not know."""
    while inner := getattr(error, "exceptions", ()):
        error = inner[0]
    return error


async def _unchecked(name: str, result: object) -> None:
    """Instead of `ClientSession.validate_tool_result`."""
