"""GET /docs: a page that lists the operations of /openapi.json. It loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from glm4.server.pages import Page

_FOLDER = Path(__file__).parent / "docs_page"
PAGES = (
    Page("/docs", _FOLDER / "docs.html", "text/html"),
    Page("/docs/docs.js", _FOLDER / "docs.js", "text/javascript"),
    Page("/docs/docs.css", _FOLDER / "docs.css", "text/css"),
)


async def root(request: Request) -> Response:
    """Redirect a browser that opened the server's address."""
    # Relative, so that it works behind a proxy that adds a prefix.
    return RedirectResponse("docs", status_code=307)
