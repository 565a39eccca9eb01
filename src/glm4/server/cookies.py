"""`Cookies`: sessions of browsers, which cannot send a key with pictures, frames and downloads.

Nothing is stored: a cookie has the name of its key, when it ends, a random number, and a MAC that only who has the key
can make. It ends with its key. Requests that may change something need the session's token, too, which other sites, and
other ports of this machine, cannot read.

Not covered: whoever has copied a cookie can use it until it ends, unless its session was ended here (the last
`KEPT_ENDED` of these, until the server is restarted); a short key can be guessed from a cookie without asking the
server. Cookies do not tell ports apart: another server on the same host sees them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from glm4.server.identity import key_id

SECONDS = 30 * 86400
KEPT_ENDED = 10_000
SESSION = "glm4.session"
"""In a request's state: the `BrowserSession` it belongs to, if it was sent with a cookie."""
TOKEN_HEADER = "x-glm4-token"  # noqa: S105 (a name)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_VALUE = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")
_PORT = re.compile(r":([0-9]{1,5})\Z")
_MOST_READ = 8  # cookies of the same name, which a neighbor may have set


@dataclass(frozen=True)
class BrowserSession:
    """A browser that has shown a key.

    Attributes:
        key_id: of that key.
        token: what requests of its pages prove themselves with.
        ends: seconds since the epoch.
    """

    key_id: str
    nonce: str
    token: str
    ends: int


class Cookies:
    """The sessions of one server.

    Args:
        keys: that the server accepts.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._keys = {key_id(key): key.encode() for key in keys}
        self._clock = clock
        self._ended: OrderedDict[str, None] = OrderedDict()

    def known_key(self, key: str) -> str | None:
        """The `key_id` of a key, if it is valid. The time does not tell how close it was."""
        given = key.encode("utf-8", "surrogatepass")
        found = [name for name, known in self._keys.items() if hmac.compare_digest(known, given)]
        return found[0] if found else None

    def begin(self, key_id: str) -> tuple[BrowserSession, str]:
        """A new session, and the value of its cookie."""
        nonce, ends = secrets.token_hex(16), int(self._clock()) + SECONDS
        return self._session(key_id, nonce, ends), f"{key_id}.{ends}.{nonce}.{self._mac(key_id, nonce, ends)}"

    def end(self, session: BrowserSession) -> None:
        """Accept this session's cookie no longer."""
        self._ended[session.nonce] = None
        while len(self._ended) > KEPT_ENDED:
            self._ended.popitem(last=False)

    def find(self, headers: Headers) -> BrowserSession | None:
        """The session that a request's cookie is of."""
        name = cookie_name(headers)
        pairs = [pair.strip().partition("=") for header in headers.getlist("cookie") for pair in header.split(";")]
        for value in [value for key, _, value in pairs if key == name][:_MOST_READ]:
            found = self._read(value)
            if found is not None:
                return found
        return None

    def _read(self, value: str) -> BrowserSession | None:
        match = _VALUE.fullmatch(value)
        if match is None:
            return None
        name, ends, nonce, mac = match[1], int(match[2]), match[3], match[4]
        if name not in self._keys or not hmac.compare_digest(self._mac(name, nonce, ends), mac):
            return None
        return None if ends <= self._clock() or nonce in self._ended else self._session(name, nonce, ends)

    def _session(self, key_id: str, nonce: str, ends: int) -> BrowserSession:
        token = hmac.new(self._keys[key_id], f"glm4 token {nonce}".encode(), hashlib.sha256).hexdigest()
        return BrowserSession(key_id, nonce, token, ends)

    def _mac(self, key_id: str, nonce: str, ends: int) -> str:
        text = f"glm4 session {key_id} {ends} {nonce}"
        return hmac.new(self._keys[key_id], text.encode(), hashlib.sha256).hexdigest()


def cookie_name(headers: Headers) -> str:
    """A name per port: servers on several ports of a host share its cookies."""
    port = _PORT.search(headers.get("host", ""))
    return f"glm4_session_{port[1] if port else ''}"


def may_act(session: BrowserSession, method: str, headers: Headers) -> bool:
    """Whether a request with this session's cookie was made by our own page, not by another one in the same browser.

    Browsers say where a request comes from in `Sec-Fetch-Site`; what may change something also needs the token.
    """
    safe = method in SAFE_METHODS
    ours = {"same-origin", "none"} if safe else {"same-origin"}
    if not set(headers.getlist("sec-fetch-site")) <= ours:
        return False
    tokens = headers.getlist(TOKEN_HEADER)
    return safe or (bool(tokens) and all(hmac.compare_digest(session.token.encode(), one.encode()) for one in tokens))
