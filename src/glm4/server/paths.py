"""`tidy_path`: request targets as clients write them, as the paths of the route table.

A base URL with a slash at its end, joined with a path, gives doubled and trailing slashes; proxies send the whole URL.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.types import Scope

_SLASHES = re.compile("/{2,}")
_ABSOLUTE = re.compile("https?://", re.IGNORECASE)


def tidy_path(scope: Scope) -> None:
    """Replace an absolute URL by its path, and its host for the Host header (RFC 9112, 3.2.2); drop extra slashes."""
    path: str = scope["path"]
    if _ABSOLUTE.match(path):
        try:
            host = urlsplit(path).netloc
        except ValueError:  # such as half a pair of brackets
            return
        path = path.partition("://")[2][len(host) :] or "/"
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [(b"host", host.encode("latin-1", "replace")), *headers]
    elif "//" not in path and (not path.endswith("/") or path == "/"):
        return
    scope["path"] = _SLASHES.sub("/", path).rstrip("/") or "/"
