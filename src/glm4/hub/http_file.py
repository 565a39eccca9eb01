"""One public file over HTTP: check within seconds that it is there and the right one, and fetch it with resume.

huggingface_hub downloads whole repositories (`download.py`). It no longer resumes a half-fetched file, so the starter
model, a single file with a known hash, is fetched here instead; endpoint, token and proxy are the same.
"""

from __future__ import annotations

import http.client
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any

from glm4.errors import DownloadError, HashMismatchError
from glm4.hub.store import disk_full
from glm4.system.certificates import tls_context

PROBE_SECONDS = 4.5
_READ_SECONDS = 10.0
_ATTEMPTS = 4
_CHUNK = 1 << 18


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Returns a redirect instead of following it: the hub's own response has the file's hash and size."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


def probe(url: str, headers: Mapping[str, str], nbytes: int, sha256: str) -> str | None:
    """Check that the file can be fetched, in at most `PROBE_SECONDS` (name lookup included).

    Asks the hub about the file, then follows its redirect for one byte: the host that stores the files may be
    blocked even if the hub is not.

    Returns:
        None if it can; otherwise the reason, for the user.
    """
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        answers.put(_head(url, headers, nbytes, sha256) or _first_byte(url, headers))

    # A thread, because a name lookup cannot be given a timeout.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"no answer within {PROBE_SECONDS:.0f} seconds"


def _head(url: str, headers: Mapping[str, str], nbytes: int, sha256: str) -> str | None:
    try:
        opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=tls_context()))
        with opener.open(_request(url, headers, "HEAD"), timeout=PROBE_SECONDS) as response:
            answer: Message = response.headers
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in (301, 302, 303, 307, 308):
            return http_reason(error.code)
        answer = error.headers
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    size = (answer.get("X-Linked-Size") or "").strip()
    etag = (answer.get("X-Linked-Etag") or "").strip('" ')
    if (size.isdigit() and int(size) != nbytes) or (len(etag) == 64 and etag != sha256):
        return "the file there is not the version we know"
    return None


def _first_byte(url: str, headers: Mapping[str, str]) -> str | None:
    request = _request(url, headers, "GET")
    request.add_header("Range", "bytes=0-0")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS, context=tls_context()) as response:  # noqa: S310 - see _request
            return None if response.read(1) else "the file there is empty"
    except urllib.error.HTTPError as error:
        error.close()
        return http_reason(error.code)
    except (OSError, http.client.HTTPException) as error:
        return _reason(error)


def fetch(url: str, headers: Mapping[str, str], partial: Path, nbytes: int, report: Callable[[float], None]) -> None:
    """Download to `partial`, continuing what is there; a broken connection is retried a few times.

    Args:
        nbytes: the known size; nothing is written beyond it.
        report: called with the number of bytes present so far.

    Raises:
        DownloadError: the connection kept breaking; `partial` is kept.
        HashMismatchError: the server's file has another size; `partial` is left unchanged.
        DiskFullError
    """
    failures = 0
    reason = ""
    while failures < _ATTEMPTS:
        before = partial.stat().st_size if partial.exists() else 0
        if before == nbytes:
            return
        try:
            _continue(url, headers, partial, nbytes, report)
        except urllib.error.HTTPError as error:
            error.close()
            reason = http_reason(error.code)
            if error.code < 500 and error.code not in (408, 416, 429):
                break
            if error.code == 416:
                partial.unlink(missing_ok=True)
        except (TimeoutError, ssl.SSLError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
            reason = _reason(error)
        now = partial.stat().st_size if partial.exists() else 0
        if now == nbytes:
            return
        failures = 1 if now > before else failures + 1
        time.sleep(0.2 * failures)
    raise DownloadError(f"the download broke off ({reason or 'the server closed the connection'})")


def _continue(
    url: str, headers: Mapping[str, str], partial: Path, nbytes: int, report: Callable[[float], None]
) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    request = _request(url, headers, "GET")
    if 0 < done < nbytes:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=_READ_SECONDS, context=tls_context()) as response:  # noqa: S310 - see _request
        if response.status != 206:
            done = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        if length is not None and done + int(length) != nbytes:
            raise HashMismatchError(f"{url} is {done + int(length):,} bytes, the published file {nbytes:,}; refused")
        with partial.open("r+b" if partial.exists() else "w+b") as out, disk_full(partial.parent, nbytes - done):
            out.truncate(done)
            out.seek(done)
            _copy(response, out, done, nbytes, report)
            out.flush()
            os.fsync(out.fileno())


def _copy(response: Any, out: IO[bytes], done: int, nbytes: int, report: Callable[[float], None]) -> None:
    while done < nbytes:
        block = response.read(min(_CHUNK, nbytes - done))
        if not block:
            return
        out.write(block)
        done += len(block)
        report(done)


def _request(url: str, headers: Mapping[str, str], method: str) -> urllib.request.Request:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url.split(':')[0]} is not a web address")
    request = urllib.request.Request(url, method=method)  # noqa: S310 - checked above
    for name, value in headers.items():
        # Not sent after a redirect: the token is for the hub, not for the host that stores the file.
        request.add_unredirected_header(name, value)
    return request


def http_reason(status: int) -> str:
    """What an HTTP status means here, for the user."""
    known = {401: "access denied", 403: "access denied", 404: "no such file", 429: "too many requests"}
    return f"{known.get(status, 'the server failed' if status >= 500 else 'refused')} (HTTP {status})"


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror:
        return f"cannot be reached ({cause.strerror})"
    return f"cannot be reached ({cause})"
