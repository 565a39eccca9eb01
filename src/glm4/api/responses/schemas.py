"""JSON schemas of the parts of /v1/responses bodies, for the tables in `responses_request`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.api.openai.fields import AUDIO, BOOLEAN, OBJECT, STRING, Schema, part_schema
from glm4.api.responses.items import MAX_ITEMS
from glm4.chat.dialects.glm4 import RAW_TOOLS
from glm4.chat.parts import DETAILS


def _object(properties: Mapping[str, Any], *required: str) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def _parts(*kinds: str, media: Sequence[Schema] = ()) -> Schema:
    """A list of text parts, and of these."""
    properties = {"type": {"enum": list(kinds)}, "text": STRING}
    hints = {"annotations": {"type": "array"}, "logprobs": {"type": "array"}, "prompt_cache_breakpoint": OBJECT}
    text = _object({**properties, **hints}, "type", "text")
    return {"type": "array", "items": {"anyOf": [text, *media]} if media else text}


_IMAGE: Schema = {
    **_object(
        {
            "type": {"const": "input_image"},
            "image_url": STRING,
            "detail": {"enum": list(DETAILS)},
            "prompt_cache_breakpoint": OBJECT,
        },
        *("type", "image_url"),
    ),
    "description": "for models that can see",
}
_AUDIO: Schema = {**part_schema("input_audio", AUDIO), "description": "for models that can hear"}


_ID = {"id": STRING}
_STATUS = {"status": {"enum": ["in_progress", "completed", "incomplete"]}}
_NAME: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_.-]+$"}
_CALLER = {"caller": _object({"type": {"const": "direct"}}, "type")}

_ITEM: Schema = {
    "anyOf": [
        _object(
            {
                "type": {"const": "message"},
                "role": {"enum": ["user", "assistant", "system", "developer"]},
                "content": {"anyOf": [STRING, _parts("input_text", "output_text", media=(_IMAGE, _AUDIO))]},
                "phase": {"enum": ["commentary", "final_answer"]},
                **_ID,
                **_STATUS,
            },
            "role",
            "content",
        ),
        _object(
            {
                "type": {"const": "function_call"},
                "call_id": STRING,
                "name": _NAME,
                "arguments": STRING,
                **_ID,
                **_STATUS,
                **_CALLER,
            },
            *("type", "call_id", "name", "arguments"),
        ),
        _object(
            {
                "type": {"const": "function_call_output"},
                "call_id": STRING,
                "output": {"anyOf": [STRING, _parts("input_text", media=(_IMAGE,))]},
                "name": STRING,
                **_ID,
                **_STATUS,
                **_CALLER,
            },
            *("type", "call_id", "output"),
        ),
        _object(
            {
                "type": {"const": "reasoning"},
                "summary": _parts("summary_text"),
                "content": _parts("reasoning_text"),
                "encrypted_content": {"type": "string", "description": "not read"},
                **_ID,
                **_STATUS,
            },
            "type",
        ),
        {
            **_object({"type": {"const": "item_reference"}, **_ID}, "id"),
            "description": "an output item of a stored response",
        },
    ]
}
INPUT: Schema = {"anyOf": [STRING, {"type": "array", "maxItems": MAX_ITEMS, "items": _ITEM}]}

TOOLS: Schema = {
    "type": "array",
    "maxItems": 128,
    "items": {
        "anyOf": [
            _object(
                {
                    "type": {"const": "function"},
                    "name": _NAME,
                    "description": STRING,
                    "parameters": OBJECT,
                    "strict": BOOLEAN,
                    "defer_loading": {"const": False},
                    "allowed_callers": {"const": ["direct"]},
                },
                "type",
                "name",
            ),
            {**_object({"type": {"enum": list(RAW_TOOLS)}}, "type"), "description": "GLM-4's own"},
        ]
    },
}
_CHOSEN: Schema = _object({"type": {"const": "function"}, "name": STRING}, "type", "name")
TOOL_CHOICE: Schema = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _CHOSEN,
        _object(
            {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "minItems": 1, "items": _CHOSEN},
            },
            *("type", "mode", "tools"),
        ),
    ]
}
TEXT: Schema = _object(
    {
        "format": {
            "anyOf": [
                _object({"type": {"enum": ["text", "json_object"]}}, "type"),
                _object(
                    {
                        "type": {"const": "json_schema"},
                        "name": STRING,
                        "schema": OBJECT,
                        "strict": BOOLEAN,
                        "description": STRING,
                    },
                    *("type", "name", "schema"),
                ),
            ]
        },
        "verbosity": {"const": "medium"},
    }
)
REASONING: Schema = _object(
    {
        "effort": {"enum": ["medium", "none"]},
        "context": {"enum": ["auto", "current_turn"]},
        "mode": {"const": "standard"},
    }
)
STREAM_OPTIONS: Schema = _object({"include_obfuscation": {"const": False}})
