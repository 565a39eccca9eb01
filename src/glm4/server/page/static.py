"""The files of the page, one row each, and the policy under which browsers show them."""

from __future__ import annotations

from pathlib import Path

from glm4.server.pages import HEADERS, Page

FOLDER = Path(__file__).parent.parent / "pages" / "chat"
PAGE_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "font-src 'self'; connect-src 'self'; media-src 'self' blob:; frame-src 'self'; manifest-src 'self'; "
    "worker-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types glm4",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_START = "index.html"


def page_rows() -> list[Page]:
    """A row for each file of the folder that is there now; the start page is at /ui."""
    return [
        Page("/ui" if file.name == _START else f"/ui/{file.name}", file, _MEDIA_TYPES[file.suffix], PAGE_HEADERS)
        for file in sorted(FOLDER.iterdir())
        if file.suffix in _MEDIA_TYPES
    ]
