"""The route tables of the server: one row per endpoint.

A new endpoint is a row in `API` and the schema of its answer in its API's `schemas.json`.
"""

from __future__ import annotations

from starlette.routing import Route

from glm4.api.anthropic.fields import COUNT_FIELDS, COUNT_REQUIRED, MESSAGE_FIELDS, MESSAGE_REQUIRED
from glm4.api.openai.fields import CHAT_FIELDS, COMPLETION_FIELDS
from glm4.api.responses.request import INPUT_TOKENS_FIELDS, RESPONSES_FIELDS
from glm4.api.vllm.request import FIELDS as GENERATE_FIELDS
from glm4.api.vllm.request import PATH as GENERATE
from glm4.api.vllm.request import REQUIRED as GENERATE_REQUIRED
from glm4.server.endpoints import (
    adapters,
    chat_completions,
    completions,
    embeddings,
    generate,
    health,
    llama_cpp,
    messages,
    metrics,
    models,
    ollama,
    ollama_models,
    responses,
    tokenize,
)
from glm4.server.endpoints.adapters import LOAD_FIELDS, UNLOAD_FIELDS
from glm4.server.endpoints.embeddings import EMBEDDING_FIELDS
from glm4.server.endpoints.tokenize import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from glm4.server.operations import GENERATING, READING, TEXT, Operation

_RESPONSE_ID = {"response_id": "the id of a stored response"}
_PAGING = {"limit": "items per page, 1 to 100", "order": "asc or desc", "after": "id of the last item seen"}
_HELLO = [{"role": "user", "content": "Why is the sky blue?"}]

API: tuple[Operation, ...] = (
    Operation("post", "/v1/chat/completions", chat_completions.chat_completions, "Text", "Answer a conversation",
        "回答一段对话", "ChatCompletion", CHAT_FIELDS, ("messages",),
        {"messages": _HELLO, "max_tokens": 64, "stream": True}, events="ChatCompletionChunk", errors=GENERATING),
    Operation("post", "/v1/completions", completions.completions, "Text", "Continue raw text", "续写文本", "Completion",
        COMPLETION_FIELDS, ("prompt",), {"prompt": "The capital of France is", "max_tokens": 8},
        events="CompletionChunk", errors=GENERATING),
    Operation("post", "/v1/messages", messages.messages, "Anthropic", "Answer a conversation, in Anthropic's format",
        "以 Anthropic 的格式回答一段对话", "Message", MESSAGE_FIELDS, MESSAGE_REQUIRED,
        {"messages": _HELLO, "max_tokens": 64, "stream": True}, events="MessageEvent", errors=GENERATING,
        error_schema="AnthropicError"),
    Operation("post", "/v1/messages/count_tokens", messages.count_tokens, "Anthropic",
        "The number of tokens in the prompt of such a request", "这样的请求的提示词有多少 token", "MessageTokenCount",
        COUNT_FIELDS, COUNT_REQUIRED, {"messages": _HELLO}, errors=READING, error_schema="AnthropicError"),
    Operation("post", "/v1/responses", responses.create, "Responses",
        "Answer, and store the answer so that a later request can continue it", "回答并保存，后续请求可以接着对话",
        "Response", RESPONSES_FIELDS, (), {"input": "Why is the sky blue?", "max_output_tokens": 64, "stream": True},
        events="ResponseEvent", errors=GENERATING),
    Operation("get", "/v1/responses/{response_id}", responses.retrieve, "Responses", "A stored response",
        "读取已保存的回答", "Response", errors=(400, 404), parameters=_RESPONSE_ID),
    Operation("delete", "/v1/responses/{response_id}", responses.delete, "Responses", "Delete a stored response",
        "删除已保存的回答", "DeletedResponse", errors=(404,), parameters=_RESPONSE_ID),
    Operation("post", "/v1/responses/{response_id}/cancel", responses.cancel, "Responses",
        "Always an error: nothing runs in the background; a stream ends by closing it",
        "总是报错：没有后台任务；关闭连接即可结束流", "Response", errors=(400, 404), parameters=_RESPONSE_ID),
    Operation("get", "/v1/responses/{response_id}/input_items", responses.list_input_items, "Responses",
        "What its request added to the conversation", "该请求给对话加入的内容", "ResponseItemList", errors=(400, 404),
        parameters={**_RESPONSE_ID, **_PAGING}),
    Operation("post", "/v1/responses/input_tokens", responses.count_tokens, "Responses",
        "The number of tokens in the prompt of such a request", "这样的请求的提示词有多少 token", "InputTokenCount",
        INPUT_TOKENS_FIELDS, (), {"input": "Hello"}, errors=READING),
    Operation("post", "/v1/embeddings", embeddings.embeddings, "Text",
        "Turn texts into vectors (mean-pooled hidden states)", "把文本变成向量（隐藏状态的均值）", "EmbeddingList",
        EMBEDDING_FIELDS, ("input",), {"input": ["first text", "second text"]}, errors=GENERATING),
    Operation("post", GENERATE, generate.generate, "Tokens", "Continue token ids: ids in, ids out (vLLM's token route)",
        "续写 token id：输入和输出都是 id（vLLM 的 token 接口）", "Generation", GENERATE_FIELDS, GENERATE_REQUIRED,
        {"token_ids": [72, 105], "sampling_params": {"max_tokens": 8}}, events="GenerationChunk", errors=GENERATING),
    Operation("get", "/v1/models", models.list_models, "Models", "List the model names a request may use",
        "列出请求中 model 可取的名称", "ModelList"),
    Operation("get", "/v1/models/{model:path}", models.retrieve_model, "Models", "Describe one of them", "查看其中一个",
        "Model", errors=(404,), parameters={"model": "a name from the list"}),
    Operation("post", "/tokenize", tokenize.tokenize, "Tokens", "The token ids of a text or a conversation",
        "文本或对话对应的 token id", "Tokenization", TOKENIZE_FIELDS, (), {"prompt": "Hello"}, errors=READING),
    Operation("post", "/detokenize", tokenize.detokenize, "Tokens", "The text of token ids", "token id 对应的文本",
        "Detokenization", DETOKENIZE_FIELDS, ("tokens",), {"tokens": [72, 105]}, errors=READING),
    Operation("post", "/v1/chat/completions/render", tokenize.render, "Tokens", "The prompt a chat request becomes",
        "对话请求渲染出的提示词", "RenderedPrompt", CHAT_FIELDS, ("messages",), {"messages": _HELLO}, errors=READING),
    Operation("get", "/tokenizer_info", tokenize.tokenizer_info, "Tokens", "Vocabulary, special tokens, chat template",
        "词表、特殊 token、对话模板", "TokenizerInfo", errors=(404, 503),
        parameters={"model": "which model; the first by default"}),
    Operation("get", "/health", health.health, "Server", "Whether the server is alive", "服务是否存活", "Health",
        also={503: "Health"}),
    Operation("get", "/ready", health.ready, "Server", "Whether every model can answer", "所有模型是否就绪",
        "Readiness", also={503: "Readiness"}),
    Operation("get", "/version", health.version, "Server", "Which glm4 this is", "glm4 的版本", "Version"),
    Operation("get", "/metrics", metrics.metrics, "Server", "Counters and timings for Prometheus", "Prometheus 指标",
        TEXT),
)  # fmt: skip
"""The operations of every server."""

ADAPTERS: tuple[Operation, ...] = (
    Operation("post", "/v1/load_lora_adapter", adapters.load_adapter, "Models",
        "Load an adapter (LoRA or P-Tuning v2) from a folder on the server's machine",
        "从服务器本机的文件夹加载适配器（LoRA 或 P-Tuning v2）", TEXT,
        LOAD_FIELDS, ("lora_name", "lora_path"), {"lora_name": "poems", "lora_path": "adapters/poems"}, errors=READING),
    Operation("post", "/v1/unload_lora_adapter", adapters.unload_adapter, "Models", "Unload an adapter",
        "卸载适配器", TEXT, UNLOAD_FIELDS, ("lora_name",), {"lora_name": "poems"}, errors=READING),
)  # fmt: skip
"""Only with `allow_adapter_loading`."""

LLAMA_CPP = (
    Route("/completion", llama_cpp.completion, methods=["POST"]),
    Route("/completions", llama_cpp.completion, methods=["POST"]),
    Route("/chat/completions", chat_completions.chat_completions, methods=["POST"]),
    Route("/chat/completions/input_tokens", llama_cpp.input_tokens, methods=["POST"]),
    Route("/v1/chat/completions/input_tokens", llama_cpp.input_tokens, methods=["POST"]),
    Route("/apply-template", llama_cpp.apply_template, methods=["POST"]),
    Route("/models", models.list_models, methods=["GET"]),
    Route("/props", llama_cpp.props, methods=["GET"]),
    Route("/slots", llama_cpp.slots, methods=["GET"]),
    Route("/v1/health", health.health, methods=["GET"]),
)
"""What programs for llama.cpp's server request in addition to OpenAI's paths; not described in /openapi.json."""

OLLAMA = (
    Route("/api/chat", ollama.chat, methods=["POST"]),
    Route("/api/generate", ollama.generate, methods=["POST"]),
    Route("/api/embed", ollama.embed, methods=["POST"]),
    Route("/api/embeddings", ollama.embeddings, methods=["POST"]),
    Route("/api/tags", ollama_models.tags, methods=["GET"]),
    Route("/api/show", ollama_models.show, methods=["POST"]),
    Route("/api/ps", ollama_models.running, methods=["GET"]),
    Route("/api/version", ollama_models.version, methods=["GET"]),
    Route("/api/pull", ollama_models.pull, methods=["POST"]),
    *(Route(f"/api/{name}", ollama_models.not_done, methods=["POST"]) for name in ("create", "copy", "push")),
    Route("/api/delete", ollama_models.not_done, methods=["DELETE"]),
    Route("/api/blobs/{digest}", ollama_models.not_done, methods=["HEAD", "POST"]),
)
"""Ollama's native API, for programs that speak nothing else; not described in /openapi.json."""

API_PUBLIC, LLAMA_CPP_PUBLIC = frozenset({"/health", "/ready", "/version"}), frozenset({"/v1/health"})
"""Open without a key: health checks."""
