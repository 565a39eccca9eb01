"""Starts servers fast: one process imports everything once and forks for each server a suite wants.

A peer's suite starts a server for every test, hundreds in all; importing the package each time would be most of the
work. What is forked is a process that has imported modules and done nothing else.

    python warm_start.py SOCKET                      the process that forks; ends with its standard input
    python warm_start.py SOCKET MODULE ARGUMENTS …   one server: MODULE.main(ARGUMENTS) in a fork; signals are handed on
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path


class Forker:
    """Accepts connections, forks a server for each, and tells each connection its server's pid and exit code."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, socket.socket] = {}
        self._wakeup, wake = socket.socketpair()
        wake.setblocking(False)
        self._wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake = wake
        for source in (self._listener, self._wakeup, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until standard input ends; every server ends then, too."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._start(self._listener.accept()[0])
                elif key.fileobj is self._wakeup:
                    self._reap()
                elif key.fileobj is sys.stdin:
                    for pid in self._children:
                        os.kill(pid, signal.SIGKILL)
                    return
                else:  # whoever started it is gone
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)

    def _start(self, connection: socket.socket) -> None:
        raw, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        order = json.loads(raw)
        pid = os.fork()
        if pid == 0:
            self._become(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._children[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)
        connection.sendall(b"%d\n" % pid)

    def _become(self, order: dict[str, object], descriptors: list[int]) -> None:
        """In the fork: the server itself."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for other in (self._listener, self._wakeup, self._wake, *self._children.values()):
                other.close()
            os.dup2(descriptors[0], 1)
            os.dup2(descriptors[1], 2)
            os.chdir(str(order["cwd"]))
            os.environ.clear()
            os.environ.update(order["environ"])  # type: ignore[call-overload]
            importlib.import_module(str(order["module"])).main(order["arguments"])
            code = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        self._wakeup.recv(4096)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._children.pop(pid)
            if connection in {key.fileobj for key in self._selector.get_map().values()}:
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):  # nobody may be waiting for it any more
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            connection.close()


def start(path: str, module: str, arguments: list[str]) -> int:
    """Run `module.main(arguments)` in a fork; returns its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    order = {"module": module, "arguments": arguments, "cwd": str(Path.cwd()), "environ": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(order).encode()], [1, 2])
    replies = connection.makefile()
    pid = int(replies.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(pid, received))
    return int(replies.readline() or 1)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(start(sys.argv[1], sys.argv[2], sys.argv[3:]))
    import gc

    for name in ("tiny_glm", "llama_server", "glm4.cli.serve", "glm4.cli.server_logging", "glm4.server.app"):
        importlib.import_module(name)
    for name in ("glm4.server.run", "glm4.llm", "glm4.model.transformer"):
        importlib.import_module(name)
    gc.freeze()
    Forker(sys.argv[1]).serve()
