"""Pages for browsers: files of the package, one table row each, served without a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_HEADERS = {
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

    def route(self) -> Route:
        """The route that serves it."""

        async def page(request: Request) -> Response:
            return FileResponse(self.file, media_type=self.media_type, headers=_HEADERS)

        return Route(self.path, page, methods=["GET"])
