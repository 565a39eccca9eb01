"""A server on a real socket that keeps to its plan: it serves the tiny model's tokens, or fails in a chosen way.

with faulty_server(processor.tokenizer) as server:
    server.plan += [drop, tokens(1, then=hang)]
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from glm4.backends.remote.completion import COMPLETIONS, GENERATE
from glm4.backends.remote.opening import PROBE
from glm4.tokenizer import Tokenizer

CERTIFICATE = Path(__file__).with_name("self_signed.pem")
HUNG_UP = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, TimeoutError, ssl.SSLError)
WAIT = 60.0

Step = Callable[["Handler"], None]


class FaultyServer(ThreadingHTTPServer):
    """Answers what `RemoteBackend.load` asks; then each completion does the next step of `plan`, or three tokens.

    Attributes:
        bodies, paths: of the completions, the probes left out.
        hung_up: set when a client closes a connection that waits in `hang`.
        released: ends every `hang`.
        models: what /v1/models lists.
        routes: further answers by path: a JSON document, or None for 404.
        probe: the choice that answers the probe; None is what a server of ours says.
        token_route: answers the probe of the token route; by default there is no such route.
    """

    daemon_threads = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = tokenizer
        self.plan: deque[Step] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.hung_up = threading.Event()
        self.released = threading.Event()
        self.models: list[dict[str, Any]] = [{"id": "far", "object": "model", "max_model_len": 256}]
        self.routes: dict[str, Any] = {}
        self.probe: dict[str, Any] | None = None
        self.token_route: Step = no_such_route
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up; nobody needs to read about it."""


class Handler(BaseHTTPRequestHandler):
    """One request; `body` is what was asked."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer
    body: dict[str, Any]

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": self.server.models} if self.path == "/v1/models" else None)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokenizer = self.server.tokenizer
        if self.path in self.server.routes:
            self.answer(self.server.routes[self.path])
        elif self.path == "/tokenize":
            self.answer({"tokens": tokenizer.encode(self.body["prompt"])})
        elif self.path == "/detokenize":
            self.answer({"prompt": tokenizer.decode(self.body["tokens"], skip_special_tokens=False)})
        elif self.path == GENERATE and self.body["token_ids"] == tokenizer.encode(PROBE):
            with suppress(*HUNG_UP):
                self.server.token_route(self)
        elif self.path == COMPLETIONS and isinstance(self.body["prompt"], str):
            ids = [*tokenizer.prefix_ids, *tokenizer.encode(self.body["prompt"])]
            choice = {"text": "a", "token_ids": [97], "prompt_token_ids": ids}
            self.stream([self.server.probe or choice])
        elif self.path not in (COMPLETIONS, GENERATE):
            self.answer(None)
        else:
            self.server.paths.append(self.path)
            self.server.bodies.append(self.body)
            self.server.headers.append(dict(self.headers))
            step = self.server.plan.popleft() if self.server.plan else tokens(3)
            with suppress(*HUNG_UP):
                step(self)

    def answer(self, document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """A JSON document; None is 404."""
        data = json.dumps(document if document is not None else {"detail": "Not Found"}).encode()
        self.send_response(404 if document is None else status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, content_type: str = "text/event-stream") -> None:
        """The head of a stream that lasts until the connection ends."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, data: bytes | Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")

    def stream(self, choices: Sequence[Mapping[str, Any]]) -> None:
        self.begin()
        for choice in choices:
            self.event({"choices": [{"index": 0, **choice}]})
        self.event(b"[DONE]")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def tokens(count: int, *, then: Step | None = None, **more: Any) -> Step:
    """Send `count` tokens (97, 98 …), one per event; then end with "length", or go on with something else."""

    def step(handler: Handler) -> None:
        handler.begin()
        for number in range(count):
            last = {"finish_reason": "length"} if then is None and number == count - 1 else {}
            choice = {"index": 0, "text": "x", "token_ids": [97 + number], **more, **last}
            handler.event({"choices": [choice]})
        if then is not None:
            then(handler)
        else:
            handler.event({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}})
            handler.event(b"[DONE]")

    return step


def no_such_route(handler: Handler) -> None:
    """404."""
    handler.answer(None)


def by_id(handler: Handler) -> None:
    """How a token route answers its probe."""
    entry = {"token_id": 97, "logprob": -1.0, "rank": 1, "top_logprobs": []}
    handler.stream([{"token_ids": [97], "logprobs": {"content": [entry]}, "finish_reason": "length"}])


def drop(handler: Handler) -> None:
    """Hang up."""
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Say nothing until the client is gone."""
    handler.close_connection = True
    handler.connection.settimeout(0.02)
    while not handler.server.released.is_set():
        try:
            if not handler.connection.recv(1):
                handler.server.hung_up.set()
                return
        except TimeoutError:
            continue


def status(code: int, message: str, **headers: str) -> Step:
    """Refuse with an error in OpenAI's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"error": {"message": message, "type": "some_error", "param": "prompt", "code": None}}
    return lambda handler: handler.answer(error, code, named)


def raw(*lines: bytes, content_type: str = "text/event-stream") -> Step:
    """Send these bytes as the body of a stream."""

    def step(handler: Handler) -> None:
        handler.begin(content_type)
        handler.wfile.write(b"".join(lines))

    return step


@contextmanager
def faulty_server(tokenizer: Tokenizer, *, secure: bool = False) -> Iterator[FaultyServer]:
    """Serve until the block ends."""
    server = FaultyServer(tokenizer)
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="faulty-server")
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
