"""`Fetcher`: what an address in a request names is fetched here and nowhere else, whoever wrote the address.

Names are resolved once per hop, every address found must be public, and the connection goes to the address that was
checked (with the name in SNI, certificate check and Host header). Redirects are followed by hand and checked like the
first address; `ask`, which may carry a key, follows none. Time, size, headers, decompression and content type are
bounded. Nothing of this machine or its user is sent: no cookies, credentials, netrc or proxies of the environment.

Not covered:
- services of the operator's own network under public addresses, or behind a NAT64 prefix of its own: firewall them;
- a firewall's or router's own idea of where a public address leads;
- hosts that the operator allows are trusted not to redirect among themselves to harm; whoever controls the names of
  `private_hosts` chooses which private machine is asked, with a GET request to any path;
- `ask` sends what it is given: its address must be the operator's own, never a stranger's;
- a name lookup cannot be interrupted: its thread lives on after the deadline, and only so many run at a time;
- what arrives is not looked at: it may be anything, whatever its type says.
"""

from __future__ import annotations

import io
import queue
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPException, HTTPResponse
from types import MappingProxyType

from glm4.errors import InvalidRequestError, shown
from glm4.multimodal.addresses import AddressError, Target, may_connect, normal_host, parse_url, redirected
from glm4.system.certificates import tls_context
from glm4.version import __version__

_HEADER_NBYTES = 64 << 10
_BLOCK_NBYTES = 64 << 10
_MAX_LOOKUPS = 16
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_REDIRECTS = (301, 302, 303, 307, 308)
# What servers send if they do not know the type; the decoder finds out.
_UNKNOWN_TYPES = ("", "application/octet-stream", "binary/octet-stream")

Resolve = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and at what cost.

    Attributes:
        allowed_hosts: names that may be fetched from; ".example.com" is example.com and all names below it. None is any
            public host, () is none.
        private_hosts: further names, which may also have loopback and private addresses.
        ports: the ports of URLs, for all hosts.
        max_nbytes: of the body, also when decompressed.
        connect_timeout: seconds to connect to one address of a host, encryption included.
        total_timeout: seconds for everything: name lookups, redirects and a body that arrives slowly.

    Raises:
        InvalidRequestError: an entry of `allowed_hosts` or `private_hosts` is not a host.
    """

    allowed_hosts: tuple[str, ...] | None = None
    private_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = (80, 443)
    max_nbytes: int = 32 << 20
    connect_timeout: float = 5.0
    total_timeout: float = 20.0
    max_redirects: int = 5
    user_agent: str = f"glm4/{__version__}"

    def __post_init__(self) -> None:
        if not (self.user_agent.isascii() and self.user_agent.isprintable()):
            raise InvalidRequestError("the user agent must be printable ASCII")
        for name in ("allowed_hosts", "private_hosts"):
            entries = getattr(self, name)
            if entries is not None:
                object.__setattr__(self, name, tuple(_host_pattern(entry) for entry in entries))

    def allows(self, host: str) -> bool:
        """True for a host that may be fetched from, if its addresses are good."""
        return self.allowed_hosts is None or _matches(host, self.allowed_hosts) or self.is_private(host)

    def is_private(self, host: str) -> bool:
        """True for a host that may have private addresses."""
        return _matches(host, self.private_hosts)


@dataclass(frozen=True)
class Fetched:
    """A file.

    Attributes:
        media_type: what the server says, such as "image/png", in lower case and without parameters; "" if it does not.
        url: where it was found, after redirects.
        charset: what the server says about a text, in lower case; "" if it does not.
    """

    data: bytes = field(repr=False)
    media_type: str
    url: str
    charset: str = ""


@dataclass(frozen=True)
class _Question:
    """A request but for its address.

    Attributes:
        kinds: see `Fetcher.fetch`.
        headers: further ones, checked.
        body: sent by POST; None is a GET.
    """

    kinds: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def head(self, target: Target, user_agent: str) -> bytes:
        """The request up to its body."""
        accept = [f"{kind}*" if kind.endswith("/") else kind for kind in self.kinds]
        lines = [
            f"{self.method} {target.path} HTTP/1.1",
            f"Host: {target.authority}",
            f"User-Agent: {user_agent}",
            f"Accept: {', '.join((*accept, '*/*;q=0.1'))}",
            "Accept-Encoding: identity",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if self.body is not None:
            lines.append(f"Content-Length: {len(self.body)}")
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class Fetcher:
    """Fetches files over http(s) under a policy. Thread-safe; every call blocks for at most `total_timeout`.

    Args:
        resolve: host and port → all IP addresses; the system's resolver by default.
    """

    def __init__(self, policy: FetchPolicy, *, resolve: Resolve | None = None) -> None:
        self.policy = policy
        self._resolve = resolve or _resolve
        self._lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)

    def fetch(self, url: str, *, kinds: Sequence[str] = ("image/",), where: str = "") -> Fetched:
        """Fetch one file.

        Args:
            kinds: media types to accept, or their beginnings. Files of unknown type are accepted too.
            where: the place of the address in the request, for error messages.

        Raises:
            InvalidRequestError: the address is refused, or there is nothing of these kinds; `.param` is `where`.
        """
        return self._answer(url, _Question(kinds), self.policy.max_redirects, where)

    def ask(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        body: bytes | None = None,
        kinds: Sequence[str] = ("application/json",),
    ) -> Fetched:
        """Ask a service of the operator's, with headers that may hold a key. Redirects are an error: they could lead
        the key elsewhere.

        Args:
            url: never from a model, a page or a request.
            headers: further ones; their values are in no error.
            body: sent by POST; without one it is a GET.

        Raises:
            InvalidRequestError: as `fetch`; or a header is not one.
        """
        for name, value in headers.items():
            if not (_HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
                raise InvalidRequestError(
                    f"the header {shown(name)} must be printable ASCII; check the key for line breaks"
                )
        return self._answer(url, _Question(kinds, headers, body), 0, "")

    def _answer(self, url: str, question: _Question, max_redirects: int, where: str) -> Fetched:
        try:
            return self._follow(url, question, max_redirects)
        except AddressError as error:
            problem = f"the address cannot be fetched: {error}"
        raise InvalidRequestError(f"{where}: {problem}" if where else problem, param=where or None)

    def _follow(self, url: str, question: _Question, max_redirects: int) -> Fetched:
        end = time.monotonic() + self.policy.total_timeout
        target = parse_url(url)
        for hop in range(max_redirects + 1):
            try:
                answer = self._get(target, question, _Deadline(end))
            except (OSError, HTTPException, ValueError, zlib.error) as error:
                reason = _reason(error, target.host)
                raise AddressError(f"it redirects, and then {reason}" if hop else reason) from None
            if isinstance(answer, Fetched):
                return answer
            target = answer
        times = f"more than {max_redirects} times" if max_redirects else f"to {shown(target.url)}"
        raise AddressError(f"it redirects {times}; give the final address")

    def _get(self, target: Target, question: _Question, deadline: _Deadline) -> Fetched | Target:
        """The file; or where it is instead."""
        with self._connect(target, self._checked_addresses(target, deadline), deadline) as sock:
            sock.settimeout(deadline.left())
            sock.sendall(question.head(target, self.policy.user_agent) + (question.body or b""))
            wire = _Wire(sock, deadline)
            response = HTTPResponse(wire, method=question.method)  # type: ignore[arg-type]  # it needs only `makefile`
            try:
                response.begin()
                location = response.getheader("Location")
                if response.status in _REDIRECTS and location is not None:
                    return redirected(target, location)
                if response.status != 200:
                    raise AddressError(f"{target.host} answers HTTP {response.status}")
                media_type = _checked_type(response, target, question.kinds)
                # Chunks have headers too.
                wire.limit = 2 * self.policy.max_nbytes + _HEADER_NBYTES
                body = _body(response, self.policy.max_nbytes)
                return Fetched(body, media_type, target.url, (response.headers.get_content_charset() or "")[:40])
            finally:
                response.close()

    def _checked_addresses(self, target: Target, deadline: _Deadline) -> Sequence[str]:
        """The addresses of the host, all of which may be connected to."""
        if not self.policy.allows(target.host):
            raise AddressError(f"this server may not fetch from {target.host}; ask its operator, or send the file")
        if target.port not in self.policy.ports:
            raise AddressError(f"port {target.port} is not allowed; {', '.join(map(str, self.policy.ports))} are")
        addresses = self._look_up(target, deadline)
        private = self.policy.is_private(target.host)
        # One text for both, so that nobody learns the names that exist in this network.
        if not addresses or not all(may_connect(address, private=private) for address in addresses):
            raise AddressError(f"{target.host} is unknown, or has an address that is not public; send the file instead")
        return addresses

    def _look_up(self, target: Target, deadline: _Deadline) -> Sequence[str]:
        """The addresses of the host; none if it is unknown. On a thread, because a lookup cannot be given a timeout."""
        answers: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._resolve(target.host, target.port))
            except (OSError, ValueError):
                answers.put(())
            finally:
                self._lookups.release()

        if not self._lookups.acquire(timeout=deadline.left()):
            raise TimeoutError
        try:
            threading.Thread(target=ask, name="glm4-lookup", daemon=True).start()
        except RuntimeError:
            self._lookups.release()
            raise
        try:
            return answers.get(timeout=deadline.left())
        except queue.Empty:
            raise TimeoutError from None

    def _connect(self, target: Target, addresses: Sequence[str], deadline: _Deadline) -> socket.socket:
        """A connection to the first address that answers."""
        failure: OSError = TimeoutError()
        for address in addresses:
            timeout = min(self.policy.connect_timeout, deadline.left())
            try:
                sock = socket.create_connection((address, target.port), timeout)
            except OSError as error:
                failure = error
                continue
            try:
                sock.settimeout(min(self.policy.connect_timeout, deadline.left()))
                # This machine under its public address; by now nothing was sent.
                if sock.getsockname()[0] == sock.getpeername()[0] and not self.policy.is_private(target.host):
                    raise AddressError(f"{target.host} is this server itself; send the file instead")
                return sock if target.scheme == "http" else self._tls.wrap_socket(sock, server_hostname=target.host)
            except BaseException:
                sock.close()
                raise
        raise failure

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context()


@dataclass(frozen=True)
class _Deadline:
    end: float

    def left(self) -> float:
        """Seconds; raises TimeoutError when none are left."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class _Wire(io.RawIOBase):
    """A socket as `HTTPResponse` reads it: until the deadline, and no more than `limit` bytes."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self.limit = _HEADER_NBYTES

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typing's Buffer is not in Python 3.10
        self._sock.settimeout(self._deadline.left())
        count = self._sock.recv_into(buffer)
        self.limit -= count
        if self.limit < 0:
            raise HTTPException("too much data")
        return count


def _checked_type(response: HTTPResponse, target: Target, kinds: Sequence[str]) -> str:
    media_type = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    if media_type not in _UNKNOWN_TYPES and not media_type.startswith(tuple(kinds)):
        wanted = " or ".join(f"{kind}…" if kind.endswith("/") else kind for kind in kinds)
        found = "a web page" if media_type == "text/html" else f"a file of type {shown(media_type)}"
        raise AddressError(f"{target.host} sends {found} instead of {wanted}; give the address of the file itself")
    return media_type


def _body(response: HTTPResponse, max_nbytes: int) -> bytes:
    """The whole body, decompressed."""
    too_large = AddressError(f"the file is larger than {max_nbytes:,} bytes; send a smaller one")
    if response.length is not None and response.length > max_nbytes:
        raise too_large
    encoding = response.getheader("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise AddressError(f"the file is compressed in an unknown way ({shown(encoding)})")
    gunzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding.endswith("gzip") else None
    data = bytearray()
    while block := response.read(_BLOCK_NBYTES):
        # One byte more than allowed: never 0, which would mean no bound.
        data += block if gunzip is None else gunzip.decompress(block, max_nbytes + 1 - len(data))
        if len(data) > max_nbytes:
            raise too_large
    # `read` itself does not mind a body that ends early.
    if response.length or (gunzip is not None and (not gunzip.eof or gunzip.unused_data)):
        raise HTTPException("incomplete")
    return bytes(data)


def _reason(error: Exception, host: str) -> str:
    """Why a hop failed, without what the system or the other side says about it."""
    if isinstance(error, AddressError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        problem = "did not deliver it in time"
    elif isinstance(error, ssl.SSLError):
        problem = "does not speak proper https"
    elif isinstance(error, OSError):
        problem = "could not be reached, or broke off"
    else:
        problem = "sent a malformed or incomplete answer"
    return f"{host} {problem}; try again, or send the file itself"


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _host_pattern(entry: str) -> str:
    dot = "." if entry.startswith(".") else ""
    try:
        return dot + normal_host(entry.removeprefix("."))
    except AddressError:
        raise InvalidRequestError(
            f"{shown(entry)} is not a host; write a name such as example.com, or .example.com for all below it as well"
        ) from None


def _matches(host: str, patterns: Sequence[str]) -> bool:
    return any(
        host == pattern.removeprefix(".") or (pattern[0] == "." and host.endswith(pattern)) for pattern in patterns
    )
