"""JSON schemas of what /v1/messages and /v1/messages/count_tokens answer, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glm4.api.openai.answer_schemas import Schema, array, closed, nullable, ref

_STRING: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_INPUT: Schema = {"type": "object"}

_STOP_REASONS = ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
_STOP: dict[str, Schema] = {"stop_reason": {"enum": [*_STOP_REASONS, None]}, "stop_sequence": nullable(_STRING)}
_USAGE = closed(
    {
        "input_tokens": {**_COUNT, "description": "without those that were cached"},
        "cache_creation_input_tokens": {"const": 0},
        "cache_read_input_tokens": _COUNT,
        "output_tokens": _COUNT,
    }
)
_EDITS = closed({"applied_edits": {"const": []}})
_BLOCK: Schema = {
    "anyOf": [
        closed({"type": {"const": "text"}, "text": _STRING}),
        closed({"type": {"const": "thinking"}, "thinking": _STRING, "signature": _STRING}),
        closed({"type": {"const": "tool_use"}, "id": _STRING, "name": _STRING, "input": _INPUT}),
    ]
}
_DELTA: Schema = {
    "anyOf": [
        closed({"type": {"const": "text_delta"}, "text": _STRING}),
        closed({"type": {"const": "thinking_delta"}, "thinking": _STRING}),
        closed({"type": {"const": "signature_delta"}, "signature": _STRING}),
        closed({"type": {"const": "input_json_delta"}, "partial_json": _STRING}),
    ]
}


def _event(name: str, properties: Mapping[str, Schema], *optional: str) -> Schema:
    return closed({"type": {"const": name}, **properties}, *optional)


MESSAGES_SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        "Message": closed(
            {
                "id": _STRING,
                "type": {"const": "message"},
                "role": {"const": "assistant"},
                "model": _STRING,
                "content": array(_BLOCK),
                **_STOP,
                "usage": _USAGE,
                "context_management": _EDITS,
                "diagnostics": closed({"cache_miss_reason": closed({"type": {"const": "unavailable"}})}),
            },
            "context_management",
            "diagnostics",
        ),
        "MessageEvent": {
            "type": "object",
            "anyOf": [
                _event("message_start", {"message": ref("Message")}),
                _event("content_block_start", {"index": _COUNT, "content_block": _BLOCK}),
                _event("content_block_delta", {"index": _COUNT, "delta": _DELTA}),
                _event("content_block_stop", {"index": _COUNT}),
                _event(
                    "message_delta",
                    {"delta": closed(_STOP), "usage": _USAGE, "context_management": _EDITS},
                    "context_management",
                ),
                _event("message_stop", {}),
                _event("ping", {}),
            ],
        },
        "MessageTokenCount": closed(
            {"input_tokens": _COUNT, "context_management": closed({"original_input_tokens": _COUNT})},
            "context_management",
        ),
    }
)
"""Components of the document, by name."""
