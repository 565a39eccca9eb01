"""The files of the page, one row each, and the policy under which browsers show them."""

from __future__ import annotations

from pathlib import Path

from glm4.server.pages import HEADERS, Page

FOLDER = Path(__file__).parent.parent / "pages" / "chat"
TRAINING = FOLDER.parent / "training"
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
    """A row for each file that is there now; the start pages are at /ui and /training."""
    return [*_rows(FOLDER, "/ui", "/ui"), *_rows(TRAINING, "/training", "/ui/training")]


def _rows(folder: Path, start: str, below: str) -> list[Page]:
    return [
        Page(start if file.name == _START else f"{below}/{file.name}", file, _MEDIA_TYPES[file.suffix], PAGE_HEADERS)
        for file in sorted(folder.iterdir())
        if file.suffix in _MEDIA_TYPES
    ]
