"""Pages for browsers: files of the package, one table row each, served without a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

HEADERS = {
    # A page shows text from documents and models; a strict policy keeps that from ever running as code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    """One file and where it is served; a client's path never reaches the disk."""

    path: str
    file: Path
    media_type: str
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)

    def route(self) -> Route:
        """The route that serves it."""

        async def page(request: Request) -> Response:
            # A few kilobytes, which the system has in memory: to hand that to a thread would take longer.
            body = self.file.read_bytes()
            # A browser asks each time, so that an update is seen at once, and is sent nothing if there is none.
            tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            headers = {**self.headers, "ETag": tag}
            if tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            return Response(body, media_type=self.media_type, headers=headers)

        return Route(self.path, page, methods=["GET"])


async def redirect(request: Request, to: str) -> Response:
    """Send a browser that opened the server's address to a page."""
    # Relative, so that it works behind a proxy that adds a prefix.
    return RedirectResponse(to, status_code=307)
