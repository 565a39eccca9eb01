"""Sites on real sockets that answer by hand, rightly or wrongly.

with site({"/cat.png": page(b"…")}) as pictures:
    fetcher_of(pictures).fetch(pictures.at("/cat.png"))
"""

from __future__ import annotations

import re
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, socket

import pytest

from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import Fetcher, FetchPolicy

CERTIFICATE = Path(__file__).with_name("pictures_test.pem")
NAME = "pictures.test"
PICTURE = b"\x89PNG as far as a fetcher can tell"
WAIT = 60.0

Answer = bytes | Callable[["Site", socket], None]


class Site(socketserver.ThreadingTCPServer):
    """Answers by path, and closes the connection.

    Attributes:
        requests: heads of all requests, as they came; `bodies`: what followed them.
        server_names: what clients asked for in SNI.
        over: set when the test is done; whoever drips or hangs stops then.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answers: Mapping[str, Answer], address: str, port: int, secure: bool) -> None:
        self.address_family = AF_INET6 if ":" in address else AF_INET
        super().__init__((address, port), _Connection)
        self.answers = answers
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.server_names: list[str | None] = []
        self.over = threading.Event()
        self.secure = secure
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            context.sni_callback = lambda _, name, __: self.server_names.append(name)
            self.tls = context

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def at(self, path: str, host: str = NAME) -> str:
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests hang up; nobody needs to read about it."""


class _Connection(socketserver.BaseRequestHandler):
    server: Site

    def handle(self) -> None:
        if self.server.secure:
            # Here and not in the listener, which a client that stops in the middle of a handshake would block.
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.request.recv(4096)
            if not part:
                return
            head += part
        head, end, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        while length is not None and len(body) < int(length[1]):
            body += self.request.recv(4096)
        self.server.requests.append((head + end).decode("latin-1"))
        self.server.bodies.append(body)
        answer = self.server.answers[head.split()[1].decode()]
        with suppress(OSError):
            if isinstance(answer, bytes):
                self.request.sendall(answer)
            else:
                answer(self.server, self.request)

    def finish(self) -> None:
        self.request.close()


@contextmanager
def site(
    answers: Mapping[str, Answer], *, address: str = "127.0.0.1", port: int = 0, secure: bool = False
) -> Iterator[Site]:
    """Serve until the block ends."""
    server = Site(answers, address, port, secure)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="site")
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def page(body: bytes = PICTURE, *headers: str, status: str = "200 OK", media_type: str | None = "image/png") -> bytes:
    """A whole answer with the right length."""
    kind = () if media_type is None else (f"Content-Type: {media_type}",)
    return head(f"Content-Length: {len(body)}", *kind, *headers, status=status) + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode("latin-1")


def redirect(location: str, status: str = "302 Found") -> bytes:
    return page(b"elsewhere", f"Location: {location}", status=status)


def drip(beginning: bytes, drop: bytes = b"x") -> Answer:
    """Send a beginning, and then a little every now and then, for ever."""

    def answer(server: Site, connection: socket) -> None:
        connection.sendall(beginning)
        while not server.over.wait(0.05):
            connection.sendall(drop)

    return answer


def flood(beginning: bytes, block: bytes) -> Answer:
    """Send a beginning, and then as much as the client takes."""

    def answer(server: Site, connection: socket) -> None:
        connection.sendall(beginning)
        end = time.monotonic() + WAIT
        while not server.over.is_set() and time.monotonic() < end:
            connection.sendall(block)

    return answer


class Names:
    """A resolver with its own idea of who is where. What it does not know is unknown.

    Attributes:
        asked: names in the order in which they were asked for.
    """

    def __init__(self, addresses: Mapping[str, list[list[str]]]) -> None:
        self._addresses = addresses
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        """The next answer for this name; the last one stays."""
        answers = self._addresses.get(host, [[]])
        number = min(self.asked.count(host), len(answers) - 1)
        self.asked.append(host)
        return answers[number]


def names(**more: list[list[str]]) -> Names:
    """`pictures.test` is this machine; underscores in further names are dots."""
    return Names({NAME: [["127.0.0.1"]], **{name.replace("_", "."): answers for name, answers in more.items()}})


def fetcher_of(
    *sites: Site,
    resolve: Names | None = None,
    max_nbytes: int = 1 << 20,
    total_timeout: float = WAIT,
    more_ports: tuple[int, ...] = (),
) -> Fetcher:
    """A fetcher to which `pictures.test`, and nothing else, may be a private host."""
    policy = FetchPolicy(
        private_hosts=(NAME,),
        ports=(*(site.port for site in sites), *more_ports),
        max_nbytes=max_nbytes,
        total_timeout=total_timeout,
    )
    return Fetcher(policy, resolve=resolve or names())


def refusal(fetcher: Fetcher, url: str, kinds: tuple[str, ...] = ("image/",)) -> str:
    """The message of the refusal; it names the field, and no address to which a name was resolved."""
    with pytest.raises(InvalidRequestError) as caught:
        fetcher.fetch(url, kinds=kinds, where="messages[0].content[1]")
    message = str(caught.value)
    assert caught.value.param == "messages[0].content[1]"
    assert message.startswith("messages[0].content[1]: the address cannot be fetched: ")
    assert f"//{NAME}" not in url or "redirects" in message or "127.0.0" not in message
    assert "Errno" not in message
    return message
