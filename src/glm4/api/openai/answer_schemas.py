"""JSON schemas of what the server answers, for the OpenAPI document. Objects are closed: other fields are faults."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_NULL: Schema = {"type": "null"}


def ref(name: str) -> Schema:
    """Points to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def nullable(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, _NULL]}


def closed(properties: Mapping[str, Schema], *optional: str, **options: Any) -> Schema:
    """An object with exactly these fields, of which the optional ones may be missing."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        **options,
    }


def _envelope(kind: str, choices: Schema) -> dict[str, Schema]:
    """What the four text objects share."""
    return {
        "id": _STRING,
        "object": {"const": kind},
        "created": _COUNT,
        "model": _STRING,
        "system_fingerprint": _STRING,
        "metadata": {"type": "object", "additionalProperties": _STRING},
        "choices": choices,
    }


_STOP_REASON = {"anyOf": [_STRING, {"type": "integer"}, _NULL], "description": "the stop string or stop id (vLLM's)"}
_PROMPT_EXTRAS: dict[str, Schema] = {
    "prompt_logprobs": array(
        nullable(
            {
                "type": "object",
                "additionalProperties": closed({"logprob": _NUMBER, "rank": _COUNT, "decoded_token": _STRING}),
            }
        )
    ),
    "prompt_token_ids": _TOKENS,
}
_TOKEN_LOGPROB: dict[str, Schema] = {
    "token": _STRING,
    "logprob": {"type": "number", "maximum": 0},
    "bytes": array({"type": "integer", "minimum": 0, "maximum": 255}),
}
_CALL: dict[str, Schema] = {
    "id": _STRING,
    "type": {"const": "function"},
    "function": closed({"name": _STRING, "arguments": _STRING}),
}

_CHAT: dict[str, Schema] = {
    "ChatCompletion": closed(
        {
            **_envelope("chat.completion", array(ref("ChatChoice"))),
            "usage": ref("Usage"),
            **_PROMPT_EXTRAS,
        },
        "metadata",
        *_PROMPT_EXTRAS,
    ),
    "ChatChoice": closed(
        {
            "index": _COUNT,
            "message": ref("ChatMessage"),
            "logprobs": nullable(ref("ChatLogprobs")),
            "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
            "stop_reason": _STOP_REASON,
            "token_ids": _TOKENS,
        },
        "token_ids",
    ),
    "ChatMessage": closed(
        {
            "role": {"const": "assistant"},
            "content": nullable(_STRING),
            "refusal": _NULL,
            "reasoning_content": _STRING,
            "tool_calls": array(closed(_CALL)),
        },
        "reasoning_content",
        "tool_calls",
    ),
    "ChatLogprobs": closed({"content": array(ref("TokenLogprob")), "refusal": _NULL}),
    "TokenLogprob": closed({**_TOKEN_LOGPROB, "top_logprobs": array(closed(_TOKEN_LOGPROB))}),
    "ChatCompletionChunk": closed(
        {
            **_envelope("chat.completion.chunk", array(ref("ChatChunkChoice"))),
            "usage": nullable(ref("Usage")),
            "prompt_token_ids": _TOKENS,
        },
        "metadata",
        "usage",
        "prompt_token_ids",
    ),
    "ChatChunkChoice": closed(
        {
            "index": _COUNT,
            "delta": ref("ChatDelta"),
            "logprobs": nullable(ref("ChatLogprobs")),
            "finish_reason": {"enum": ["stop", "length", "tool_calls", None]},
            "token_ids": _TOKENS,
        },
        "token_ids",
    ),
    "ChatDelta": closed(
        {
            "role": {"const": "assistant"},
            "content": _STRING,
            "reasoning_content": _STRING,
            "tool_calls": array(
                closed(
                    {
                        "index": _COUNT,
                        **_CALL,
                        "function": closed({"name": _STRING, "arguments": _STRING}, "name"),
                    },
                    "id",
                    "type",
                )
            ),
        },
        "role",
        "content",
        "reasoning_content",
        "tool_calls",
    ),
}

_COMPLETION_CHOICE: dict[str, Schema] = {
    "index": _COUNT,
    "text": _STRING,
    "logprobs": nullable(ref("CompletionLogprobs")),
    "finish_reason": {"enum": ["stop", "length"]},
    "stop_reason": _STOP_REASON,
    "token_ids": _TOKENS,
    "prompt_token_ids": _TOKENS,
}
_COMPLETION_CHUNK_CHOICE: dict[str, Schema] = {
    **{key: schema for key, schema in _COMPLETION_CHOICE.items() if key != "stop_reason"},
    "finish_reason": {"enum": ["stop", "length", None]},
    "prompt_token_ids": nullable(_TOKENS),
}
_TEXT: dict[str, Schema] = {
    "Completion": closed(
        {
            **_envelope("text_completion", array(closed(_COMPLETION_CHOICE, "token_ids", "prompt_token_ids"))),
            "usage": ref("Usage"),
            **_PROMPT_EXTRAS,
        },
        "metadata",
        *_PROMPT_EXTRAS,
    ),
    "CompletionChunk": closed(
        {
            **_envelope("text_completion", array(closed(_COMPLETION_CHUNK_CHOICE, "token_ids", "prompt_token_ids"))),
            "usage": nullable(ref("Usage")),
        },
        "metadata",
        "usage",
    ),
    "CompletionLogprobs": closed(
        {
            "tokens": array(_STRING),
            "token_logprobs": array(nullable(_NUMBER)),
            "top_logprobs": array(nullable({"type": "object", "additionalProperties": _NUMBER})),
            "text_offset": array(_COUNT),
        }
    ),
    "EmbeddingList": closed(
        {
            "object": {"const": "list"},
            "data": array(
                closed(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [array(_NUMBER), {**_STRING, "contentEncoding": "base64"}]},
                    }
                )
            ),
            "model": _STRING,
            "usage": closed({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Usage": closed(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": closed({"cached_tokens": _COUNT}),
        }
    ),
}

_TOKENS_SCHEMAS: dict[str, Schema] = {
    "Tokenization": closed(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": {
                "anyOf": [
                    _TOKENS,
                    array(closed({"id": _COUNT, "piece": {"anyOf": [_STRING, array({"type": "integer"})]}})),
                ]
            },
            "token_strs": array(_STRING),
        },
        "token_strs",
    ),
    "Detokenization": closed({"prompt": _STRING, "content": _STRING}),
    "RenderedPrompt": closed({"prompt": _STRING, "prompt_token_ids": _TOKENS, "count": _COUNT}),
    "TokenizerInfo": closed(
        {
            "model": _STRING,
            "dialect": _STRING,
            "vocab_size": _COUNT,
            "named_tokens": _COUNT,
            "max_model_len": _COUNT,
            "prefix_ids": _TOKENS,
            "stop_ids": _TOKENS,
            "special_tokens": {"type": "object", "additionalProperties": _COUNT},
            "chat_template": _STRING,
        }
    ),
}

_SERVER: dict[str, Schema] = {
    "Model": closed(
        {
            "id": _STRING,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _STRING,
            "root": _STRING,
            "parent": nullable(_STRING),
            "max_model_len": nullable(_COUNT),
        }
    ),
    "ModelList": closed({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "Health": closed({"status": {"enum": ["ok", "failed"]}, "models": array(_STRING)}, "models"),
    "Readiness": closed(
        {
            "status": {"enum": ["ready", "loading", "failed"]},
            "models": {"type": "object", "additionalProperties": _STRING},
        },
        "models",
    ),
    "Version": closed({"version": _STRING}),
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Error": closed(
        {"error": closed({"message": _STRING, "type": _STRING, "param": nullable(_STRING), "code": nullable(_STRING)})}
    ),
    "AnthropicError": closed({"type": {"const": "error"}, "error": closed({"type": _STRING, "message": _STRING})}),
}

SCHEMAS: Mapping[str, Schema] = MappingProxyType({**_CHAT, **_TEXT, **_TOKENS_SCHEMAS, **_SERVER})
"""Components of the document, by name."""
