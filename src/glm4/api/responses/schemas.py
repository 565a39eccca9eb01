"""The schemas from `schemas.json` that the tables in `request` use."""

from __future__ import annotations

from glm4.api.schemas import schemas

_SCHEMAS = schemas("responses")
INPUT = _SCHEMAS["input"]
TOOLS = _SCHEMAS["tools"]
TOOL_CHOICE = _SCHEMAS["tool_choice"]
TEXT = _SCHEMAS["text"]
REASONING = _SCHEMAS["reasoning"]
STREAM_OPTIONS = _SCHEMAS["stream_options"]
