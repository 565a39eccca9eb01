"""Parts of messages as the page shows them: text and reasoning with `blocks` of HTML, tool calls with their `code`.

Called on threads: the first call loads libraries, and a long text takes a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm4.agent.session_html import arguments_html

TEXTS = ("text", "reasoning")
_HTML = ("blocks", "code")


def dressed(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part that is complete, with HTML beside what it has."""
    from glm4.markup import render

    # The page shows these as they are: a conversation that was imported must not bring its own.
    kept: dict[str, Any] = {name: value for name, value in part.items() if name not in _HTML}
    if part["kind"] in TEXTS:
        return {**kept, "blocks": render(part["text"])}
    if "call" in part and part["state"] != "writing":
        return {**kept, "code": arguments_html(part["tool"], part["arguments"])}
    return kept
