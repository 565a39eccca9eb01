"""Jupyter notebooks: cells in order, and what code printed; pictures are left out."""

from __future__ import annotations

import json
from typing import Any

from glm4.documents.formats.detection import Content
from glm4.documents.formats.markdown import add_markdown
from glm4.documents.formats.parsed import Parsed, RefusedError

_OUTPUT_CHARACTERS = 5000


def load(content: Content, parsed: Parsed) -> None:
    """Read a notebook."""
    try:
        cells = json.loads(content.text)["cells"]
    except (ValueError, KeyError, TypeError):
        raise RefusedError("is a damaged notebook: it is not the JSON of one") from None
    for cell in cells if isinstance(cells, list) else ():
        if not isinstance(cell, dict):
            continue
        source = _text(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            add_markdown(source, parsed)
        else:
            parsed.add(source, "code")
        for output in cell.get("outputs") or () if isinstance(cell.get("outputs"), list) else ():
            parsed.add(_printed(output, parsed)[:_OUTPUT_CHARACTERS], "code")


def _printed(output: Any, parsed: Parsed) -> str:
    if not isinstance(output, dict):
        return ""
    data = output.get("data")
    if not isinstance(data, dict):
        return _text(output.get("text"))
    if "text/plain" not in data or any(str(kind).startswith("image/") for kind in data):
        parsed.warn("pictures that its code has drawn were left out")
    return _text(data.get("text/plain"))


def _text(value: object) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else ""
