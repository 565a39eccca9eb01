"""`StdioTransport`: an MCP server as a process of ours, with bounds that the library's own transport does not have.

The server gets PATH, HOME, LANG and what is configured; nothing else of our environment. It runs in a session of its
own. When the connection ends, its stdin is closed, then it is asked (SIGTERM), then killed, and so is everything that
it has started: all processes of its group, and on Linux all that carry the mark in their environment, which children
inherit even when they leave the session.

Not covered: processes that leave the session and clear their environment, or that run as another user; containers and
services that the server asks a daemon to start; a server that ignores the end of its stdin, when this process is killed
outright. The server can do whatever this user can: it is not in a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4.agent.mcp.config import McpServer
from glm4.errors import ToolServerError

if TYPE_CHECKING:
    from mcp.shared.message import SessionMessage

MAX_MESSAGE = 16 << 20
"""Bytes of one message of a server."""

_INHERITED = ("PATH", "HOME", "LANG")
_MARK = "GLM4_MCP_PROCESS"
_STDERR_KEPT = 4096  # bytes, the last ones
# Seconds: for the end of what was written before an exit; to leave when stdin ends; after SIGTERM.
_DRAIN, _LEAVE, _TERMINATE = 0.5, 1.0, 1.0
_KILL_ROUNDS = 20


class StdioTransport:
    """An async context manager of the two streams that `mcp.Client` talks through.

    Args:
        on_end: called once in the event loop when the server will send nothing anymore.
    """

    def __init__(self, server: McpServer, on_end: Callable[[], None]) -> None:
        self._server, self._on_end = server, on_end
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._stderr, self._flow = _Tail(), _Flow(self._drain)
        self._pipes: list[asyncio.ReadTransport] = []
        self._ended = self._asked = False
        self._problem = ""

    async def __aenter__(self) -> tuple[_Messages, _Sink]:
        self._loop = asyncio.get_running_loop()
        self._process = _start(self._server, self._mark)
        self._exited = asyncio.Event()
        self._waiter = threading.Thread(target=self._wait, daemon=True, name=f"mcp-{self._server.name}")
        self._waiter.start()
        self._reader = asyncio.StreamReader(MAX_MESSAGE)
        try:
            await self._read(lambda: asyncio.StreamReaderProtocol(self._reader), self._process.stdout)
            await self._read(lambda: self._stderr, self._process.stderr)
            self._stdin, _ = await self._loop.connect_write_pipe(lambda: self._flow, self._process.stdin)
        except BaseException:
            self._kill()
            raise
        return _Messages(self), _Sink(self._stdin, self._flow)

    async def _read(self, protocol: Callable[[], asyncio.Protocol], pipe: Any) -> None:
        self._pipes.append((await self._loop.connect_read_pipe(protocol, pipe))[0])

    async def __aexit__(self, *error: object) -> None:
        self._stdin.close()
        try:
            if not await self._gone(_LEAVE):
                self._asked = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGTERM)
                await self._gone(_TERMINATE)
        finally:  # without an await: another cancellation ends the patience, not this
            self._kill()

    @property
    def leaving(self) -> bool:
        """It reads no more: what is sent now is lost."""
        return self._flow.lost or self._exited.is_set()

    async def line(self) -> bytes | None:
        """The next line; None at the end."""
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial.strip():
                return error.partial
        except asyncio.LimitOverrunError:
            self._problem = f"sent a message of more than {MAX_MESSAGE >> 20} MB"
        self._end()
        return None

    def state(self) -> str:
        """What went wrong with it, for an error: how it ended, and its last words."""
        code = self._process.poll() if hasattr(self, "_process") else None
        if self._problem:
            how = self._problem
        elif code is None or self._asked or not self._ended:
            how = "closed its output" if self._ended else ""
        else:
            how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        said = self._stderr.text()
        return "; ".join(filter(None, (how, f"its stderr ends with: {said}" if said else "")))

    def _wait(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._left)

    def _left(self) -> None:
        self._exited.set()
        self._drain()

    def _drain(self) -> None:
        """It reads no more, or has ended: what it wrote is read. Those it has started may keep its stdout open."""
        self._loop.call_later(_DRAIN, self._feed_end)

    def _feed_end(self) -> None:
        self._pipes[0].close()
        self._reader.feed_eof()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._feed_end()
            self._on_end()

    async def _gone(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._exited.wait(), seconds)
        return self._exited.is_set()

    def _kill(self) -> None:
        """Kill what is left and give everything back. Blocks for some hundredths of a second."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(_KILL_ROUNDS):  # one that forks meanwhile is found in the next round
            found = _marked(self._mark)
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                break
            time.sleep(0.01)
        self._waiter.join(timeout=2)
        for pipe in self._pipes:
            pipe.close()
        if not self._flow.lost and hasattr(self, "_stdin"):
            self._stdin.abort()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()


class _Messages:
    """The library's `ReadStream`."""

    def __init__(self, transport: StdioTransport) -> None:
        self._transport = transport

    async def receive(self) -> SessionMessage | Exception:
        return await self.__anext__()

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        while True:
            line = await self._transport.line()
            if line is None:
                raise StopAsyncIteration
            if not line.strip():
                continue
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError as error:  # programs print to stdout what belongs elsewhere; the session drops it
                return error

    async def aclose(self) -> None:
        """The transport closes."""

    async def __aenter__(self) -> _Messages:
        return self

    async def __aexit__(self, *error: object) -> None:
        """See `aclose`."""


class _Sink:
    """The library's `WriteStream`."""

    def __init__(self, pipe: asyncio.WriteTransport, flow: _Flow) -> None:
        self._pipe, self._flow = pipe, flow

    async def send(self, item: SessionMessage, /) -> None:
        if self._pipe.is_closing():  # then the reader has ended, and with it every request
            return
        self._pipe.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        await self._flow.open.wait()

    async def aclose(self) -> None:
        """The transport closes."""

    async def __aenter__(self) -> _Sink:
        return self

    async def __aexit__(self, *error: object) -> None:
        """See `aclose`."""


class _Flow(asyncio.Protocol):
    """Of the server's stdin: whether it keeps up, and that it reads no more."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._on_end = on_end
        self.lost = False

    def pause_writing(self) -> None:
        self.open.clear()

    def resume_writing(self) -> None:
        self.open.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.set()
        self.lost = True
        self._on_end()


class _Tail(asyncio.Protocol):
    """The last bytes of the server's stderr."""

    def __init__(self) -> None:
        self._kept = b""

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_STDERR_KEPT:]

    def text(self) -> str:
        return self._kept.decode(errors="replace").strip()


def _start(server: McpServer, mark: str) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | dict(server.env)
    environment[_MARK] = mark.partition("=")[2]
    command = shutil.which(server.command, path=environment.get("PATH"))
    if server.cwd is not None and not server.cwd.is_dir():
        raise ToolServerError(f"its working folder {server.cwd} does not exist")
    if command is None:
        raise ToolServerError(f"the program {server.command} is not installed, or not in PATH")
    pipe: Any = subprocess.PIPE
    try:
        return subprocess.Popen(  # noqa: S603  (the administrator's own command)
            [command, *server.args],
            stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, cwd=server.cwd, env=environment, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ToolServerError(f"{command} cannot be started: {error}") from None


def _marked(mark: str) -> list[int]:
    """Processes that have the mark in the environment that they were started with."""
    if sys.platform != "linux":
        return []
    found, wanted = [], mark.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
