"""GET /docs: a page that lists the operations of /openapi.json. It loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from glm4.server.pages import Page

_FOLDER = Path(__file__).parent / "docs_page"
PAGES = (
    Page("/docs", _FOLDER / "docs.html", "text/html"),
    Page("/docs/docs.js", _FOLDER / "docs.js", "text/javascript"),
    Page("/docs/docs.css", _FOLDER / "docs.css", "text/css"),
)
