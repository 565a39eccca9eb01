"""The network between a browser and a server, which a test can cut and mend: a small TCP proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cable:
    """Forwards one port of loopback to another; nothing is understood of what passes.

    Attributes:
        url: where browsers go.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._whole = True
        self._ended = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="cable")]
        self._threads[0].start()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._whole = False
        with self._lock:
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self._whole = True

    def close(self) -> None:
        """For good."""
        self._ended = True
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
            for pair in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=pair, name="cable")
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            both_done = source not in self._sockets
            self._sockets -= {source, sink}
        if both_done:
            source.close()
            sink.close()


@contextmanager
def cable(target: tuple[str, int]) -> Iterator[Cable]:
    """A cable until the block ends."""
    made = Cable(target)
    try:
        yield made
    finally:
        made.close()
