"""The operations of the API as its document shows them: one row for each route of `app.ROUTES`.

A new endpoint is a line in `app.ROUTES`, a row here, and the schema of its answer in `response_schemas`. A test
compares the two tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm4.api.anthropic.fields import COUNT_FIELDS, COUNT_REQUIRED, MESSAGE_FIELDS, MESSAGE_REQUIRED
from glm4.api.fields import Field
from glm4.api.openai.fields import CHAT_FIELDS, COMPLETION_FIELDS
from glm4.api.responses.request import INPUT_TOKENS_FIELDS, RESPONSES_FIELDS
from glm4.server.endpoints.adapters import LOAD_FIELDS, UNLOAD_FIELDS
from glm4.server.endpoints.embeddings import EMBEDDING_FIELDS
from glm4.server.endpoints.tokenize import DETOKENIZE_FIELDS, TOKENIZE_FIELDS

TEXT = "text/plain"

# What may go wrong, beside 401 (keys), 421 (Host) and 500, which are everywhere.
_READING = (400, 404, 408, 413, 415, 503)
_GENERATING = (*_READING, 429, 504)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        method: lower case, as OpenAPI has it.
        path: with parameters as `{name}`.
        tag: the group it is listed under.
        summary, summary_zh: one line each.
        body: the table its request body is read with; None if it takes none.
        required: fields a body must have.
        example: a body that works.
        answer: component with the schema of its 200 answer, or TEXT.
        events: component of the events when it streams.
        errors: statuses of errors in the API's shape.
        also: further statuses → component, where they are no error body.
        parameters: name → description, of the path where it stands there, otherwise of the query.
    """

    method: str
    path: str
    tag: str
    summary: str
    summary_zh: str
    answer: str
    body: Mapping[str, Field] | None = None
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None
    events: str | None = None
    errors: tuple[int, ...] = ()
    also: Mapping[int, str] | None = None
    parameters: Mapping[str, str] | None = None
    error_schema: str = "Error"


_RESPONSE_ID = {"response_id": "the id of a stored response"}
_HELLO = [{"role": "user", "content": "Why is the sky blue?"}]

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post", "/v1/chat/completions", "Text", "Answer a conversation", "回答一段对话",
        "ChatCompletion", CHAT_FIELDS, ("messages",), {"messages": _HELLO, "max_tokens": 64, "stream": True},
        events="ChatCompletionChunk", errors=_GENERATING,
    ),
    Operation(
        "post", "/v1/completions", "Text", "Continue raw text", "续写文本",
        "Completion", COMPLETION_FIELDS, ("prompt",), {"prompt": "The capital of France is", "max_tokens": 8},
        events="CompletionChunk", errors=_GENERATING,
    ),
    Operation(
        "post", "/v1/messages", "Anthropic", "Answer a conversation, in Anthropic's words",
        "以 Anthropic 的格式回答一段对话", "Message", MESSAGE_FIELDS, MESSAGE_REQUIRED,
        {"messages": _HELLO, "max_tokens": 64, "stream": True},
        events="MessageEvent", errors=_GENERATING, error_schema="AnthropicError",
    ),
    Operation(
        "post", "/v1/messages/count_tokens", "Anthropic", "How many tokens the prompt of such a request has",
        "这样的请求的提示词有多少 token", "MessageTokenCount", COUNT_FIELDS, COUNT_REQUIRED, {"messages": _HELLO},
        errors=_READING, error_schema="AnthropicError",
    ),
    Operation(
        "post", "/v1/responses", "Responses", "Answer, and keep the answer so that a later request can continue it",
        "回答并保存，后续请求可以接着对话", "Response", RESPONSES_FIELDS, (),
        {"input": "Why is the sky blue?", "max_output_tokens": 64, "stream": True},
        events="ResponseEvent", errors=_GENERATING,
    ),
    Operation(
        "get", "/v1/responses/{response_id}", "Responses", "A stored response", "读取已保存的回答",
        "Response", errors=(400, 404), parameters=_RESPONSE_ID,
    ),
    Operation(
        "delete", "/v1/responses/{response_id}", "Responses", "Forget a stored response", "删除已保存的回答",
        "DeletedResponse", errors=(404,), parameters=_RESPONSE_ID,
    ),
    Operation(
        "post", "/v1/responses/{response_id}/cancel", "Responses",
        "Always an error: nothing runs in the background; a stream ends by closing it",
        "总是报错：没有后台任务；关闭连接即可结束流", "Response", errors=(400, 404), parameters=_RESPONSE_ID,
    ),
    Operation(
        "get", "/v1/responses/{response_id}/input_items", "Responses", "What its request added to the conversation",
        "该请求给对话加入的内容", "ResponseItemList", errors=(400, 404),
        parameters={
            **_RESPONSE_ID,
            "limit": "items a page, 1 to 100", "order": "asc or desc", "after": "id of the last item seen",
        },
    ),
    Operation(
        "post", "/v1/responses/input_tokens", "Responses", "How many tokens the prompt of such a request has",
        "这样的请求的提示词有多少 token", "InputTokenCount", INPUT_TOKENS_FIELDS, (), {"input": "Hello"},
        errors=_READING,
    ),
    Operation(
        "post", "/v1/embeddings", "Text", "Turn texts into vectors (mean-pooled hidden states)",
        "把文本变成向量（隐藏状态的均值）",
        "EmbeddingList", EMBEDDING_FIELDS, ("input",), {"input": ["first text", "second text"]}, errors=_GENERATING,
    ),
    Operation(
        "get", "/v1/models", "Models", "List the names a request's model may have",
        "列出请求中 model 可取的名称", "ModelList",
    ),
    Operation(
        "get", "/v1/models/{model}", "Models", "Describe one of them", "查看其中一个", "Model", errors=(404,),
        parameters={"model": "a name from the list"},
    ),
    Operation(
        "post", "/v1/load_lora_adapter", "Models", "Load a LoRA adapter from a folder of the server's machine",
        "从服务器本机的文件夹加载 LoRA 适配器", TEXT, LOAD_FIELDS, ("lora_name", "lora_path"),
        {"lora_name": "poems", "lora_path": "adapters/poems"}, errors=_READING,
    ),
    Operation(
        "post", "/v1/unload_lora_adapter", "Models", "Forget a LoRA adapter", "卸载 LoRA 适配器",
        TEXT, UNLOAD_FIELDS, ("lora_name",), {"lora_name": "poems"}, errors=_READING,
    ),
    Operation(
        "post", "/tokenize", "Tokens", "The token ids of a text or a conversation", "文本或对话对应的 token id",
        "Tokenization", TOKENIZE_FIELDS, (), {"prompt": "Hello"}, errors=_READING,
    ),
    Operation(
        "post", "/detokenize", "Tokens", "The text of token ids", "token id 对应的文本",
        "Detokenization", DETOKENIZE_FIELDS, ("tokens",), {"tokens": [72, 105]}, errors=_READING,
    ),
    Operation(
        "post", "/v1/chat/completions/render", "Tokens", "The prompt a chat request becomes", "对话请求渲染出的提示词",
        "RenderedPrompt", CHAT_FIELDS, ("messages",), {"messages": _HELLO}, errors=_READING,
    ),
    Operation(
        "get", "/tokenizer_info", "Tokens", "Vocabulary, special tokens, chat template", "词表、特殊 token、对话模板",
        "TokenizerInfo", errors=(404, 503), parameters={"model": "which model; the first if left out"},
    ),
    Operation(
        "get", "/health", "Server", "Whether the server lives", "服务是否存活", "Health", also={503: "Health"},
    ),
    Operation(
        "get", "/ready", "Server", "Whether every model can answer", "所有模型是否就绪",
        "Readiness", also={503: "Readiness"},
    ),
    Operation("get", "/version", "Server", "Which glm4 this is", "glm4 的版本", "Version"),
    Operation("get", "/metrics", "Server", "Counters and timings for Prometheus", "Prometheus 指标", TEXT),
    Operation("get", "/openapi.json", "Server", "This document", "本文档", "OpenAPI"),
)  # fmt: skip
"""All of them; those of adapters are left out of a server that does not load any."""
