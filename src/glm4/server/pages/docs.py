"""GET /docs: a page that lists the operations of /openapi.json. Static files of this package, none from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from glm4.server.errors import ApiError

_STATIC = Path(__file__).parent / "docs_page"
FILES: Mapping[str, str] = MappingProxyType({"docs.js": "text/javascript", "docs.css": "text/css"})
"""What /docs/{file} serves: name → media type. A table, so that no path of a client reaches the disk."""

_HEADERS = {
    # The page shows what an OpenAPI document says; a strict policy keeps that from ever becoming code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def docs(request: Request) -> Response:
    """The page."""
    return FileResponse(_STATIC / "docs.html", media_type="text/html", headers=_HEADERS)


async def docs_file(request: Request) -> Response:
    """Its script and its style sheet."""
    name = request.path_params["file"]
    if name not in FILES:
        raise ApiError(404, "there is no such file")
    return FileResponse(_STATIC / name, media_type=FILES[name], headers=_HEADERS)


async def root(request: Request) -> Response:
    """Somebody opened the server's address in a browser."""
    # Relative, so that it is right behind a proxy that adds a prefix.
    return RedirectResponse("docs", status_code=307)
