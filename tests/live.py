"""A real server on a real socket, in a thread of the test's process: the tests talk to it as any client would."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from starlette.applications import Starlette

from glm4.llm import LLM
from glm4.server.app import create_app
from glm4.server.app_parts import App
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.registry import Loader
from glm4.server.run import make_server
from glm4.server.state import ServerState, find_state


@dataclass(frozen=True)
class LiveServer:
    """A running server."""

    url: str
    app: Starlette
    server: uvicorn.Server

    @property
    def unsent(self) -> int:
        """Bytes held for clients that have not read them yet."""
        held = list(self.server.server_state.connections)
        return sum(one.transport.get_write_buffer_size() for one in held)

    @property
    def state(self) -> ServerState:
        return find_state(self.app, ServerState)

    @property
    def llm(self) -> LLM:
        """The first model."""
        return self.state.models.models[0].llm

    @property
    def address(self) -> tuple[str, int]:
        """For raw sockets."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def num_tasks(self) -> int:
        """Tasks of the server's event loop: its own and those of requests."""
        loading = self.state.models._loading
        assert loading is not None

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), loading.get_loop()).result()

    @property
    def leftovers(self) -> dict[str, int]:
        """What requests hold of the first model; all zero when there are none. Cached prefixes are held by nobody."""
        model, stats = self.state.models.models[0], self.llm.stats()
        assert model.admission is not None
        return {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "pages": stats.kv_pages_used,
            "places": model.admission.num_taken,
            "queue": model.admission.num_waiting,
            "unfinished": int(self.llm.has_unfinished_requests()),
        }

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def serve(
    config: ServerConfig,
    llm: LLM | None = None,
    *,
    load: Loader | None = None,
    wait: bool = True,
    send_buffer: int | None = None,
    apps: Sequence[App] = (),
) -> Iterator[LiveServer]:
    """Serve on a free port of loopback until the block ends.

    Args:
        llm: answers for every model of the configuration; None loads them.
        load: makes the model of each specification, instead.
        wait: come back when every model is ready (or has failed).
        send_buffer: bytes the system keeps for each connection, to notice early that a client does not read.
        apps: served beside the API.
    """
    app = create_app(config, load if llm is None else lambda spec, progress: llm, apps)
    # As `bind` makes it: without the protocol, asyncio does not set TCP_NODELAY, and answers come 40 ms late.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # at once, as there: `started` is said a moment before the server listens
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server")
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url) as client:
            while not server.started:
                time.sleep(0.01)
            while wait and client.get("/ready").json()["status"] == "loading":
                time.sleep(0.02)
        yield LiveServer(url, app, server)
    finally:
        server.should_exit = True
        thread.join()


def config(*names: str, source: str = "tiny", **options: object) -> ServerConfig:
    """A configuration with one model."""
    return ServerConfig((ModelSpec(source, names or ("tiny",)),), **options)  # type: ignore[arg-type]
