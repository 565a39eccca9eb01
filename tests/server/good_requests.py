"""Requests as clients send them, one or two per endpoint and kind of conversation; each is answered."""

from __future__ import annotations

from typing import Any

from fuzzing import Good

_SHORT = {"model": "tiny", "temperature": 0.0, "max_tokens": 5}
_PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "get_weather", "description": "Weather of a place.", "parameters": _PLACE}
_TOOL = {"type": "function", "function": _FUNCTION}
_TALK = [
    {"role": "system", "content": "Be brief, please."},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": [{"type": "text", "text": "and another"}]},
]


def _call(number: int, city: str) -> dict[str, Any]:
    arguments = f'{{"city": "{city}"}}'
    return {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


_TOOLS_USED = [
    {"role": "user", "content": "Where is it warm?"},
    {"role": "assistant", "content": None, "tool_calls": [_call(1, "Oslo"), _call(2, "Cairo")]},
    {"role": "tool", "tool_call_id": "call_1", "content": "3 degrees"},
    {"role": "tool", "tool_call_id": "call_2", "content": "35 degrees"},
]
_SCHEMA = {"name": "place", "schema": _PLACE, "strict": True}
_RESPONSES_TOOL = {"type": "function", **_FUNCTION}
_ANTHROPIC_TOOL = {"name": "get_weather", "description": "Weather of a place.", "input_schema": _PLACE}


def _use(number: int, city: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "get_weather", "input": {"city": city}}


def _result(number: int, text: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": [{"type": "text", "text": text}]}


_ANTHROPIC_TALK = [
    {"role": "user", "content": "Where is it warm?"},
    {"role": "assistant", "content": [{"type": "text", "text": "I ask."}, _use(1, "Oslo"), _use(2, "Cairo")]},
    {"role": "user", "content": [_result(1, "3 degrees"), _result(2, "35 degrees")]},
]
_OLLAMA_OPTIONS = {"temperature": 0.0, "num_predict": 5, "num_ctx": 64, "stop": ["zz"], "repeat_penalty": 1.3}
_OLLAMA_CALL = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
_OLLAMA_TALK = [
    {"role": "user", "content": "Where is it warm?"},
    {"role": "assistant", "content": "", "tool_calls": [_OLLAMA_CALL]},
    {"role": "tool", "tool_name": "get_weather", "content": "3 degrees"},
]
_ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Where is it warm?"}]},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
    {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "Cairo"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "3 degrees"},
    {"type": "function_call_output", "call_id": "c2", "output": "35 degrees"},
]

_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAAD0lEQVR4nGO4oGAgsCABAAgXAjE2nQcNAAAAAElFTkSuQmCC"
_URL = f"data:image/png;base64,{_PICTURE}"
_SHOWN = [
    {"role": "system", "content": "Be brief, please."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": _URL, "detail": "low"}},
        ],
    },
    {"role": "assistant", "content": "A picture."},
    {"role": "user", "content": "Of what?"},
]
_SHOWN_ITEM = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": _URL, "detail": "auto"},
        {"type": "input_text", "text": "What is it?"},
    ],
}
_SOURCE = {"type": "base64", "media_type": "image/png", "data": _PICTURE}
_SHOWN_BLOCKS = [
    {"role": "user", "content": [{"type": "image", "source": _SOURCE}, {"type": "text", "text": "What is it?"}]},
]

WITH_PICTURES = [
    Good("/v1/chat/completions", {**_SHORT, "messages": _SHOWN}),
    Good("/v1/chat/completions", {**_SHORT, "messages": _SHOWN[:2], "stream": True, "n": 2, "tools": [_TOOL]}),
    Good("/v1/chat/completions/render", {"messages": _SHOWN}),
    Good("/tokenize", {"messages": _SHOWN[:2], "return_token_strs": True}),
    Good("/v1/responses", {"input": [_SHOWN_ITEM], "temperature": 0.0, "max_output_tokens": 5, "store": False}),
    Good("/v1/responses/input_tokens", {"input": [_SHOWN_ITEM], "instructions": "Be brief."}),
    Good("/v1/messages", {**_SHORT, "messages": _SHOWN_BLOCKS, "system": "Be brief."}),
    Good("/v1/messages/count_tokens", {"model": "tiny", "messages": _SHOWN_BLOCKS}),
    Good(
        "/completion",
        {
            "prompt": {"prompt_string": "See <__media__>:", "multimodal_data": [_PICTURE]},
            "temperature": 0.0,
            "n_predict": 5,
        },
    ),
]
"""For a model that sees."""

GOOD = [
    Good("/v1/chat/completions", {**_SHORT, "messages": _TALK, "logprobs": True, "top_logprobs": 2, "stop": ["zz"]}),
    Good("/v1/chat/completions", {**_SHORT, "messages": _TOOLS_USED, "tools": [_TOOL], "tool_choice": "auto"}),
    Good(
        "/v1/chat/completions",
        {
            **_SHORT,
            "messages": _TALK,
            "response_format": {"type": "json_schema", "json_schema": _SCHEMA},
            "frequency_penalty": 1.5,
            "logit_bias": {"65": 4},
        },
    ),
    Good(
        "/v1/chat/completions",
        {**_SHORT, "messages": _TALK[:2], "stream": True, "stream_options": {"include_usage": True}, "n": 2, "seed": 4},
    ),
    Good("/v1/completions", {**_SHORT, "prompt": "Once upon", "logprobs": 2, "echo": True, "min_tokens": 4}),
    Good(
        "/v1/completions",
        {**_SHORT, "prompt": ["one", "two"], "presence_penalty": 1.5, "stop": "q", "stop_token_ids": [66], "top_k": 9},
    ),
    Good("/v1/completions", {**_SHORT, "prompt": [72, 101, 108], "temperature": 0.7, "seed": 11, "top_p": 0.9}),
    Good(
        "/inference/v1/generate",
        {
            "model": "tiny",
            "token_ids": [72, 101, 108],
            "sampling_params": {"temperature": 0.0, "max_tokens": 5, "logprobs": 2, "stop_token_ids": [66], "top_k": 9},
        },
    ),
    Good(
        "/v1/responses",
        {
            "model": "tiny",
            "input": "Hello there",
            "instructions": "Be brief.",
            "temperature": 0.0,
            "max_output_tokens": 5,
            "store": False,
        },
    ),
    Good(
        "/v1/responses",
        {
            "input": _ITEMS,
            "tools": [_RESPONSES_TOOL],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "temperature": 0.0,
            "max_output_tokens": 5,
            "store": False,
        },
    ),
    Good("/v1/responses/input_tokens", {"input": _ITEMS, "instructions": "Be brief.", "tools": [_RESPONSES_TOOL]}),
    Good(
        "/v1/messages",
        {
            **_SHORT,
            "system": "Be brief.",
            "messages": _ANTHROPIC_TALK,
            "tools": [_ANTHROPIC_TOOL],
            "tool_choice": {"type": "auto"},
        },
    ),
    Good("/v1/messages", {**_SHORT, "messages": _ANTHROPIC_TALK[:1], "stop_sequences": ["zz"], "top_k": 5}),
    Good("/v1/messages/count_tokens", {"model": "tiny", "messages": _ANTHROPIC_TALK, "tools": [_ANTHROPIC_TOOL]}),
    Good("/v1/embeddings", {"model": "tiny", "input": ["first", "second"], "encoding_format": "float"}),
    Good("/tokenize", {"prompt": "Hello <|user|>", "add_special_tokens": False, "return_token_strs": True}),
    Good("/tokenize", {"messages": _TALK, "add_generation_prompt": True, "tools": [_TOOL]}),
    Good("/detokenize", {"model": "tiny", "tokens": [72, 105, 33]}),
    Good("/v1/chat/completions/render", {"messages": _TOOLS_USED, "tools": [_TOOL]}),
    Good(
        "/completion",
        {"prompt": "Once", "temperature": 0.0, "n_predict": 5, "n_probs": 2, "repeat_penalty": 1.3, "stop": ["zz"]},
    ),
    Good(
        "/api/chat",
        {"model": "tiny", "messages": _OLLAMA_TALK, "tools": [_TOOL], "stream": False, "options": _OLLAMA_OPTIONS},
    ),
    Good(
        "/api/chat",
        {"model": "tiny:latest", "messages": _TALK[:2], "format": _PLACE, "think": False, "options": _OLLAMA_OPTIONS},
    ),
    Good(
        "/api/generate",
        {"model": "tiny", "prompt": "Once", "system": "Be brief.", "keep_alive": "5m", "options": _OLLAMA_OPTIONS},
    ),
    Good("/api/embed", {"model": "tiny", "input": ["first", "second"], "truncate": True}),
    Good("/api/show", {"model": "tiny", "verbose": False}),
    Good("/apply-template", {"messages": _TALK}),
    Good("/chat/completions/input_tokens", {"messages": _TOOLS_USED, "tools": [_TOOL]}),
]
