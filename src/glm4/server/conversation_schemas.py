"""JSON schemas of what /v1/responses and /v1/messages answer, for the OpenAPI document; see `response_schemas`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glm4.server.schema_words import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    NULL,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    array,
    closed,
    nullable,
    one_of,
    ref,
)

_STATUS: Schema = {"enum": ["in_progress", "completed", "incomplete"]}
_TEXT_PART = closed({"type": {"const": "input_text"}, "text": STRING})
_REFUSAL_PART = closed({"type": {"const": "refusal"}, "refusal": STRING})
_REASONING_PART = closed({"type": {"const": "reasoning_text"}, "text": STRING})
_SUMMARY_PART = closed({"type": {"const": "summary_text"}, "text": STRING})
_LOGPROB: dict[str, Schema] = {
    "token": STRING,
    "bytes": array({"type": "integer", "minimum": 0, "maximum": 255}),
    "logprob": {"type": "number", "maximum": 0},
}
_LOGPROBS = array(closed({**_LOGPROB, "top_logprobs": array(closed(_LOGPROB))}))
_OUTPUT_PART = closed(
    {"type": {"const": "output_text"}, "text": STRING, "annotations": array(ANYTHING), "logprobs": _LOGPROBS}
)

_ITEMS: dict[str, Schema] = {
    "ResponseMessage": closed(
        {
            "id": STRING,
            "type": {"const": "message"},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "status": _STATUS,
            "content": array(one_of(_OUTPUT_PART, _TEXT_PART, _REFUSAL_PART)),
        }
    ),
    "ResponseFunctionCall": closed(
        {
            "id": STRING,
            "type": {"const": "function_call"},
            "call_id": STRING,
            "name": STRING,
            "arguments": STRING,
            "status": _STATUS,
        }
    ),
    "ResponseFunctionCallOutput": closed(
        {
            "id": STRING,
            "type": {"const": "function_call_output"},
            "call_id": STRING,
            "output": one_of(STRING, array(_TEXT_PART)),
            "status": _STATUS,
        }
    ),
    "ResponseReasoning": closed(
        {
            "id": STRING,
            "type": {"const": "reasoning"},
            "summary": array(_SUMMARY_PART),
            "content": array(_REASONING_PART),
            "status": _STATUS,
        }
    ),
    "ResponseItem": one_of(
        *(ref(f"Response{name}") for name in ("Message", "FunctionCall", "FunctionCallOutput", "Reasoning"))
    ),
}

_RESPONSES: dict[str, Schema] = {
    "Response": closed(
        {
            "id": STRING,
            "object": {"const": "response"},
            "created_at": COUNT,
            "completed_at": nullable(COUNT),
            "status": {"enum": ["in_progress", "completed", "incomplete", "failed", "cancelled"]},
            "model": STRING,
            "output": array(ref("ResponseItem")),
            "usage": nullable(ref("ResponseUsage")),
            "error": nullable(closed({"code": STRING, "message": STRING})),
            "incomplete_details": nullable(closed({"reason": {"const": "max_output_tokens"}})),
            "background": {"const": False},
            "instructions": nullable(STRING),
            "max_output_tokens": nullable(COUNT),
            "max_tool_calls": NULL,
            "metadata": {"type": "object", "additionalProperties": STRING},
            "parallel_tool_calls": BOOLEAN,
            "previous_response_id": nullable(STRING),
            "prompt_cache_key": nullable(STRING),
            "reasoning": closed({"effort": nullable(STRING), "summary": NULL}),
            "safety_identifier": nullable(STRING),
            "service_tier": {"const": "default"},
            "store": BOOLEAN,
            "temperature": NUMBER,
            "text": closed({"format": OBJECT, "verbosity": {"const": "medium"}}),
            "tool_choice": one_of(STRING, OBJECT),
            "tools": array(OBJECT),
            "top_logprobs": COUNT,
            "top_p": NUMBER,
            "truncation": {"const": "disabled"},
            "user": nullable(STRING),
        }
    ),
    "ResponseUsage": closed(
        {
            "input_tokens": COUNT,
            "input_tokens_details": closed({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
            "output_tokens": COUNT,
            "output_tokens_details": closed({"reasoning_tokens": COUNT}),
            "total_tokens": COUNT,
        }
    ),
    "ResponseDeleted": closed({"id": STRING, "object": {"const": "response"}, "deleted": {"const": True}}),
    "ResponseItemList": closed(
        {
            "object": {"const": "list"},
            "data": array(ref("ResponseItem")),
            "first_id": STRING,
            "last_id": STRING,
            "has_more": BOOLEAN,
        }
    ),
    "ResponseInputTokens": closed({"object": {"const": "response.input_tokens"}, "input_tokens": COUNT}),
}


def _event(kinds: str | list[str], fields: Mapping[str, Schema]) -> Schema:
    kind: Schema = {"const": kinds} if isinstance(kinds, str) else {"enum": kinds}
    return closed({"type": kind, "sequence_number": COUNT, **fields})


_AT: dict[str, Schema] = {"item_id": STRING, "output_index": COUNT}
_PART: dict[str, Schema] = {**_AT, "content_index": COUNT}
_STATES = [f"response.{state}" for state in ("created", "in_progress", "completed", "incomplete", "failed")]
_ITEM_STATES = ["response.output_item.added", "response.output_item.done"]
_PART_STATES = ["response.content_part.added", "response.content_part.done"]
_EVENTS: dict[str, Schema] = {
    "ResponseEvent": one_of(
        _event(_STATES, {"response": ref("Response")}),
        _event(_ITEM_STATES, {"output_index": COUNT, "item": ref("ResponseItem")}),
        _event(_PART_STATES, {**_PART, "part": one_of(_OUTPUT_PART, _REASONING_PART)}),
        _event("response.output_text.delta", {**_PART, "delta": STRING, "logprobs": _LOGPROBS}),
        _event("response.output_text.done", {**_PART, "text": STRING, "logprobs": _LOGPROBS}),
        _event("response.reasoning_text.delta", {**_PART, "delta": STRING}),
        _event("response.reasoning_text.done", {**_PART, "text": STRING}),
        _event("response.function_call_arguments.delta", {**_AT, "delta": STRING}),
        _event("response.function_call_arguments.done", {**_AT, "arguments": STRING, "name": STRING}),
        _event("error", {"code": nullable(STRING), "message": STRING, "param": nullable(STRING)}),
    )
}

_COUNTS = closed(
    dict.fromkeys(("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"), COUNT)
)
_EDITS = closed({"applied_edits": array(ANYTHING)})
_BLOCKS = one_of(
    closed({"type": {"const": "text"}, "text": STRING}),
    closed({"type": {"const": "thinking"}, "thinking": STRING, "signature": STRING}),
    closed({"type": {"const": "tool_use"}, "id": STRING, "name": STRING, "input": OBJECT}),
)
_STOP: dict[str, Schema] = {
    "stop_reason": {
        "enum": [
            "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded", None,
        ]
    },
    "stop_sequence": nullable(STRING),
}  # fmt: skip


def _stream(kind: str, fields: Mapping[str, Schema], *optional: str) -> Schema:
    return closed({"type": {"const": kind}, **fields}, *optional)


_MESSAGES: dict[str, Schema] = {
    "Message": closed(
        {
            "id": STRING,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": STRING,
            "content": array(_BLOCKS),
            **_STOP,
            "usage": _COUNTS,
            "context_management": _EDITS,
            "diagnostics": closed({"cache_miss_reason": closed({"type": {"const": "unavailable"}})}),
        },
        "context_management",
        "diagnostics",
    ),
    "MessageTokens": closed(
        {"input_tokens": COUNT, "context_management": closed({"original_input_tokens": COUNT})}, "context_management"
    ),
    "MessageEvent": one_of(
        _stream("message_start", {"message": ref("Message")}),
        _stream("ping", {}),
        _stream("content_block_start", {"index": COUNT, "content_block": _BLOCKS}),
        _stream(
            "content_block_delta",
            {
                "index": COUNT,
                "delta": one_of(
                    _stream("text_delta", {"text": STRING}),
                    _stream("thinking_delta", {"thinking": STRING}),
                    _stream("signature_delta", {"signature": STRING}),
                    _stream("input_json_delta", {"partial_json": STRING}),
                ),
            },
        ),
        _stream("content_block_stop", {"index": COUNT}),
        _stream(
            "message_delta",
            {"delta": closed(_STOP), "usage": _COUNTS, "context_management": _EDITS},
            "context_management",
        ),
        _stream("message_stop", {}),
    ),
    "AnthropicError": closed({"type": {"const": "error"}, "error": closed({"type": STRING, "message": STRING})}),
}

CONVERSATION_SCHEMAS: Mapping[str, Schema] = MappingProxyType({**_ITEMS, **_RESPONSES, **_EVENTS, **_MESSAGES})
"""Components of the document, by name."""
