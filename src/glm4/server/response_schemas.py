"""JSON schemas of what the server answers, for the OpenAPI document.

Objects are closed: a field that is not named is a fault, and the tests notice it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glm4.server.conversation_schemas import CONVERSATION_SCHEMAS
from glm4.server.schema_words import COUNT, NULL, NUMBER, STRING, TOKENS, Schema, array, closed, nullable, ref


def _envelope(kind: str, choices: Schema) -> dict[str, Schema]:
    """What the four text objects share."""
    return {
        "id": STRING,
        "object": {"const": kind},
        "created": COUNT,
        "model": STRING,
        "metadata": {"type": "object", "additionalProperties": STRING},
        "choices": choices,
    }


_STOP_REASON = {"anyOf": [STRING, {"type": "integer"}, NULL], "description": "the stop string or stop id (vLLM's)"}
_PROMPT_EXTRAS: dict[str, Schema] = {
    "prompt_logprobs": array(
        nullable(
            {
                "type": "object",
                "additionalProperties": closed({"logprob": NUMBER, "rank": COUNT, "decoded_token": STRING}),
            }
        )
    ),
    "prompt_token_ids": TOKENS,
}
_TOKEN_LOGPROB: dict[str, Schema] = {
    "token": STRING,
    "logprob": {"type": "number", "maximum": 0},
    "bytes": array({"type": "integer", "minimum": 0, "maximum": 255}),
}
_CALL: dict[str, Schema] = {
    "id": STRING,
    "type": {"const": "function"},
    "function": closed({"name": STRING, "arguments": STRING}),
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
            "index": COUNT,
            "message": ref("ChatMessage"),
            "logprobs": nullable(ref("ChatLogprobs")),
            "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
            "stop_reason": _STOP_REASON,
            "token_ids": TOKENS,
        },
        "token_ids",
    ),
    "ChatMessage": closed(
        {
            "role": {"const": "assistant"},
            "content": nullable(STRING),
            "refusal": NULL,
            "reasoning_content": STRING,
            "tool_calls": array(closed(_CALL)),
        },
        "reasoning_content",
        "tool_calls",
    ),
    "ChatLogprobs": closed({"content": array(ref("TokenLogprob")), "refusal": NULL}),
    "TokenLogprob": closed({**_TOKEN_LOGPROB, "top_logprobs": array(closed(_TOKEN_LOGPROB))}),
    "ChatCompletionChunk": closed(
        {
            **_envelope("chat.completion.chunk", array(ref("ChatChunkChoice"))),
            "usage": nullable(ref("Usage")),
            "prompt_token_ids": TOKENS,
        },
        "metadata",
        "usage",
        "prompt_token_ids",
    ),
    "ChatChunkChoice": closed(
        {
            "index": COUNT,
            "delta": ref("ChatDelta"),
            "logprobs": nullable(ref("ChatLogprobs")),
            "finish_reason": {"enum": ["stop", "length", "tool_calls", None]},
            "token_ids": TOKENS,
        },
        "token_ids",
    ),
    "ChatDelta": closed(
        {
            "role": {"const": "assistant"},
            "content": STRING,
            "reasoning_content": STRING,
            "tool_calls": array(
                closed(
                    {
                        "index": COUNT,
                        **_CALL,
                        "function": closed({"name": STRING, "arguments": STRING}, "name"),
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
    "index": COUNT,
    "text": STRING,
    "logprobs": nullable(ref("CompletionLogprobs")),
    "finish_reason": {"enum": ["stop", "length"]},
    "stop_reason": _STOP_REASON,
    "token_ids": TOKENS,
    "prompt_token_ids": TOKENS,
}
_COMPLETION_CHUNK_CHOICE: dict[str, Schema] = {
    **{key: schema for key, schema in _COMPLETION_CHOICE.items() if key != "stop_reason"},
    "finish_reason": {"enum": ["stop", "length", None]},
    "prompt_token_ids": nullable(TOKENS),
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
            "tokens": array(STRING),
            "token_logprobs": array(nullable(NUMBER)),
            "top_logprobs": array(nullable({"type": "object", "additionalProperties": NUMBER})),
            "text_offset": array(COUNT),
        }
    ),
    "EmbeddingList": closed(
        {
            "object": {"const": "list"},
            "data": array(
                closed(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {"anyOf": [array(NUMBER), {**STRING, "contentEncoding": "base64"}]},
                    }
                )
            ),
            "model": STRING,
            "usage": closed({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "Usage": closed(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "prompt_tokens_details": closed({"cached_tokens": COUNT}),
        }
    ),
}

_TOKENS_SCHEMAS: dict[str, Schema] = {
    "Tokenization": closed(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": {
                "anyOf": [
                    TOKENS,
                    array(closed({"id": COUNT, "piece": {"anyOf": [STRING, array({"type": "integer"})]}})),
                ]
            },
            "token_strs": array(STRING),
        },
        "token_strs",
    ),
    "Detokenization": closed({"prompt": STRING, "content": STRING}),
    "RenderedPrompt": closed({"prompt": STRING, "prompt_token_ids": TOKENS, "count": COUNT}),
    "TokenizerInfo": closed(
        {
            "model": STRING,
            "dialect": STRING,
            "vocab_size": COUNT,
            "named_tokens": COUNT,
            "max_model_len": COUNT,
            "prefix_ids": TOKENS,
            "stop_ids": TOKENS,
            "special_tokens": {"type": "object", "additionalProperties": COUNT},
            "chat_template": STRING,
        }
    ),
}

_SERVER: dict[str, Schema] = {
    "Model": closed(
        {
            "id": STRING,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": STRING,
            "root": STRING,
            "parent": nullable(STRING),
            "max_model_len": nullable(COUNT),
        }
    ),
    "ModelList": closed({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "Health": closed({"status": {"enum": ["ok", "failed"]}, "models": array(STRING)}, "models"),
    "Readiness": closed(
        {
            "status": {"enum": ["ready", "loading", "failed"]},
            "models": {"type": "object", "additionalProperties": STRING},
        },
        "models",
    ),
    "Version": closed({"version": STRING}),
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Error": closed(
        {"error": closed({"message": STRING, "type": STRING, "param": nullable(STRING), "code": nullable(STRING)})}
    ),
}

SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {**_CHAT, **_TEXT, **_TOKENS_SCHEMAS, **CONVERSATION_SCHEMAS, **_SERVER}
)
"""Components of the document, by name."""
