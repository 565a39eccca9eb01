"""Arguments of tool calls for the APIs that have them as objects: a model writes them as text, which may be no JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INVALID_JSON = "INVALID_JSON"
"""The only member of an object made of arguments that were not a JSON object."""


def arguments_object(text: str) -> dict[str, Any]:
    """What a model wrote, as an object; `{"INVALID_JSON": text}` if it is none."""
    try:
        value = json.loads(text) if text.strip() else {}
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # Python accepts NaN and lone surrogates
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID_JSON: text}


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """The text that an object sent back by a client stands for."""
    written = arguments.get(INVALID_JSON) if len(arguments) == 1 else None
    return written if isinstance(written, str) else json.dumps(arguments, ensure_ascii=False)
