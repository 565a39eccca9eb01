"""`LoopThread`: the one thread whose event loop runs every MCP connection of this process."""

from __future__ import annotations

import asyncio
import threading


class LoopThread:
    """An event loop on a thread of its own, from the first `acquire` to the last `release`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> asyncio.AbstractEventLoop:
        """The running loop; to be given back with `release`."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), daemon=True, name="mcp")
                self._thread.start()
            self._users += 1
            return self._loop

    def release(self) -> None:
        """The last one ends the thread."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)  # a look-up of a name cannot be interrupted
            self._loop = self._thread = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


LOOP_THREAD = LoopThread()
