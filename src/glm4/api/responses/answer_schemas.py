"""JSON schemas of what /v1/responses and the paths below it answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glm4.api.openai.answer_schemas import Schema, array, closed, nullable, ref
from glm4.api.responses import schemas as responses_schemas

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_STATUS: Schema = {"enum": ["in_progress", "completed", "incomplete"]}
_LOGPROBS = array(ref("TokenLogprob"))
_OUTPUT_TEXT = closed(
    {"type": {"const": "output_text"}, "text": STRING, "annotations": array({}), "logprobs": _LOGPROBS}
)
_REFUSAL = closed({"type": {"const": "refusal"}, "refusal": STRING})


def _text(kind: str) -> Schema:
    return closed({"type": {"const": kind}, "text": STRING})


_MESSAGE: dict[str, Schema] = {"id": STRING, "type": {"const": "message"}, "status": _STATUS}
_ANSWER = closed({**_MESSAGE, "role": {"const": "assistant"}, "content": array({"anyOf": [_OUTPUT_TEXT, _REFUSAL]})})
_QUESTION = closed(
    {
        **_MESSAGE,
        "role": {"enum": ["user", "system", "developer"]},
        "content": array(_text("input_text")),
    }
)
_THINKING = closed(
    {
        "id": STRING,
        "type": {"const": "reasoning"},
        "status": _STATUS,
        "summary": array(_text("summary_text")),
        "content": array(_text("reasoning_text")),
    }
)
_CALL = closed(
    {
        "id": STRING,
        "type": {"const": "function_call"},
        "status": _STATUS,
        "call_id": STRING,
        "name": STRING,
        "arguments": STRING,
    }
)
_RESULT = closed(
    {
        "id": STRING,
        "type": {"const": "function_call_output"},
        "status": _STATUS,
        "call_id": STRING,
        "output": {"anyOf": [STRING, array(_text("input_text"))]},
    }
)

_RESPONSE = closed(
    {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": COUNT,
        "completed_at": nullable(COUNT),
        "status": {"enum": ["in_progress", "completed", "incomplete", "failed", "cancelled"]},
        "error": nullable(closed({"code": {"const": "server_error"}, "message": STRING})),
        "incomplete_details": nullable(closed({"reason": {"const": "max_output_tokens"}})),
        "model": STRING,
        "output": array(ref("OutputItem")),
        "usage": nullable(ref("ResponseUsage")),
        "background": {"const": False},
        "instructions": nullable(STRING),
        "max_output_tokens": nullable(COUNT),
        "max_tool_calls": {"type": "null"},
        "metadata": {"type": "object", "additionalProperties": STRING},
        "parallel_tool_calls": {"type": "boolean"},
        "previous_response_id": nullable(STRING),
        "prompt_cache_key": nullable(STRING),
        "reasoning": closed({"effort": {"enum": ["medium", "none", None]}, "summary": {"type": "null"}}),
        "safety_identifier": nullable(STRING),
        "service_tier": {"const": "default"},
        "store": {"type": "boolean"},
        "temperature": {"type": "number"},
        "text": dict(responses_schemas.TEXT),
        "tool_choice": dict(responses_schemas.TOOL_CHOICE),
        "tools": array({"type": "object", "required": ["type"]}),
        "top_logprobs": COUNT,
        "top_p": {"type": "number"},
        "truncation": {"const": "disabled"},
        "user": nullable(STRING),
    }
)

_PLACE: dict[str, Schema] = {"item_id": STRING, "output_index": COUNT}
_IN_PART: dict[str, Schema] = {**_PLACE, "content_index": COUNT}
_PART: dict[str, Schema] = {**_IN_PART, "part": {"anyOf": [_OUTPUT_TEXT, _text("reasoning_text")]}}
_WHOLE: dict[str, Schema] = {"response": ref("Response")}
_ITEM: dict[str, Schema] = {"output_index": COUNT, "item": ref("OutputItem")}
_EVENTS: Mapping[str, dict[str, Schema]] = {
    **{f"response.{end}": _WHOLE for end in ("created", "in_progress", "completed", "incomplete", "failed")},
    "response.output_item.added": _ITEM,
    "response.output_item.done": _ITEM,
    "response.content_part.added": _PART,
    "response.content_part.done": _PART,
    "response.output_text.delta": {**_IN_PART, "delta": STRING, "logprobs": _LOGPROBS},
    "response.output_text.done": {**_IN_PART, "text": STRING, "logprobs": _LOGPROBS},
    "response.reasoning_text.delta": {**_IN_PART, "delta": STRING},
    "response.reasoning_text.done": {**_IN_PART, "text": STRING},
    "response.function_call_arguments.delta": {**_PLACE, "delta": STRING},
    "response.function_call_arguments.done": {**_PLACE, "arguments": STRING},
    "error": {"code": STRING, "message": STRING, "param": nullable(STRING)},
}


def _event(kind: str, fields: Mapping[str, Any]) -> Schema:
    return closed({"type": {"const": kind}, "sequence_number": COUNT, **fields})


RESPONSES_SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        "Response": _RESPONSE,
        "ResponseEvent": {"type": "object", "oneOf": [_event(*row) for row in _EVENTS.items()]},
        "ResponseUsage": closed(
            {
                "input_tokens": COUNT,
                "input_tokens_details": closed({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
                "output_tokens": COUNT,
                "output_tokens_details": closed({"reasoning_tokens": COUNT}),
                "total_tokens": COUNT,
            }
        ),
        "OutputItem": {"type": "object", "oneOf": [_ANSWER, _THINKING, _CALL]},
        "InputItem": {"type": "object", "oneOf": [_ANSWER, _QUESTION, _THINKING, _CALL, _RESULT]},
        "ResponseItemList": closed(
            {
                "object": {"const": "list"},
                "data": array(ref("InputItem")),
                "first_id": STRING,
                "last_id": STRING,
                "has_more": {"type": "boolean"},
            }
        ),
        "DeletedResponse": closed({"id": STRING, "object": {"const": "response"}, "deleted": {"const": True}}),
        "InputTokenCount": closed({"object": {"const": "response.input_tokens"}, "input_tokens": COUNT}),
    }
)
"""Components of the document, by name."""
