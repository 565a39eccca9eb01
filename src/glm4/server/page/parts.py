"""Parts of messages as the page shows them: text and reasoning with `blocks` of HTML, tool calls with their `code`.

Called on threads: the first call loads libraries, and a long text takes a while.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEXTS = ("text", "reasoning")


def dressed(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part that is complete, with HTML beside what it has."""
    from glm4.markup import render

    if part["kind"] in TEXTS:
        return {**part, "blocks": render(part["text"])}
    if "call" in part and part["state"] != "writing":
        return {**part, "code": arguments_html(part["tool"], part["arguments"])}
    return dict(part)


def arguments_html(tool: str, arguments: str) -> str:
    """What a call was made with: code for interpreters, JSON for others."""
    from glm4.markup import render_code

    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return render_code(arguments, "python" if tool == "python" else None)
    if isinstance(given, dict) and isinstance(given.get("code"), str) and tool == "python":
        return render_code(given["code"], "python")
    return render_code(json.dumps(given, ensure_ascii=False, indent=2), "json")
