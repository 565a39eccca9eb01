"""POST /tokenize and /detokenize, GET /tokenizer_info, POST /v1/chat/completions/render: text and ids, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.fields import BOOLEAN, IDS, STRING, Field, boolean, text, token_ids
from glm4.api.openai import parse_chat
from glm4.api.openai.fields import CHAT_FIELDS, read_fields
from glm4.errors import InvalidRequestError, TokenizerError
from glm4.server.agent.input_files import InputFiles
from glm4.server.memory import parse, prepare
from glm4.server.pictures import prepare_chat
from glm4.server.registry import Target
from glm4.server.state import server_state
from glm4.tokenizer.base import ROLES

MAX_IDS = 1 << 20
"""Ids in one answer, unless the context holds more."""

TOKENIZE_FIELDS: Mapping[str, Field] = {
    "model": Field(STRING, text),
    "prompt": Field(STRING, text),
    "content": Field({"type": "string", "description": "llama.cpp's name for prompt"}, text),
    "add_special_tokens": Field(BOOLEAN, boolean),
    "add_special": Field({"type": "boolean", "description": "llama.cpp's name for add_special_tokens"}, boolean),
    "parse_special": Field({"type": "boolean", "description": "read <|user|> and the like as tokens"}, boolean),
    "return_token_strs": Field(BOOLEAN, boolean),
    "with_pieces": Field({"type": "boolean", "description": "llama.cpp: ids with their text"}, boolean),
    **{name: CHAT_FIELDS[name] for name in ("messages", "tools", "add_generation_prompt", "continue_final_message")},
    "chat_template_kwargs": CHAT_FIELDS["chat_template_kwargs"],
}
DETOKENIZE_FIELDS: Mapping[str, Field] = {
    "model": Field(STRING, text),
    "tokens": Field(IDS, token_ids),
}


async def tokenize(request: Request) -> Response:
    """Ids of a raw prompt, or of a rendered conversation."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    given = await parse(lambda: read_fields(body, TOKENIZE_FIELDS))
    sources = [name for name in ("prompt", "content", "messages") if name in given]
    if len(sources) != 1:
        raise InvalidRequestError("give exactly one of prompt, content and messages", param="prompt")
    if sources == ["messages"]:
        fields = {name: body[name] for name in given if name in CHAT_FIELDS}
        chat = await parse(lambda: parse_chat(fields, target.llm.default_sampling_params()))
        ids = (await prepare_chat(target, chat.request, runs=False)).prompt_ids
    else:
        native = sources == ["content"]
        special = given.get("parse_special", native or state.config.parse_special or _is_raw(given))
        encode = partial(_encode, target, given, given[sources[0]], native=native, special=special)
        ids = await prepare(target.longest_text, encode)
    return await parse(lambda: JSONResponse(_tokens(target, ids, given)))


def _is_raw(given: Mapping[str, Any]) -> bool:
    """Whether a client writes all special tokens itself: it turned ours off, as programs written for vLLM do."""
    return given.get("add_special_tokens") is False


def _encode(target: Target, given: Mapping[str, Any], source: str, *, native: bool, special: bool) -> list[int]:
    """Ids of a text; llama.cpp's form adds no prefix unless asked, vLLM's does."""
    tokenizer = target.llm.tokenizer
    prefix = given.get("add_special_tokens", given.get("add_special", not native))
    encode, most = tokenizer.encode_prompt if prefix else tokenizer.encode, target.llm.info.max_model_len
    ids = encode(source, allow_special=special, most=most)
    if len(ids) > max(MAX_IDS, most):
        raise InvalidRequestError(
            f"the text has {len(ids)} tokens; send it in parts of at most {MAX_IDS}", param="prompt"
        )
    return ids


def _tokens(target: Target, ids: Sequence[int], given: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer = target.llm.tokenizer

    def piece(token: int) -> str | list[int]:
        raw = tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return list(raw)

    tokens: list[Any] = [{"id": i, "piece": piece(i)} for i in ids] if given.get("with_pieces") else list(ids)
    body: dict[str, Any] = {"count": len(ids), "max_model_len": target.llm.info.max_model_len, "tokens": tokens}
    if given.get("return_token_strs"):
        body["token_strs"] = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return body


async def detokenize(request: Request) -> Response:
    """The text of ids, special tokens included."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    given = await parse(lambda: read_fields(body, DETOKENIZE_FIELDS))
    if "tokens" not in given:
        raise InvalidRequestError("tokens is missing", param="tokens")
    try:
        decoded = await parse(lambda: target.llm.tokenizer.decode(given["tokens"], skip_special_tokens=False))
    except TokenizerError as error:
        raise InvalidRequestError(str(error), param="tokens") from None
    return JSONResponse({"prompt": decoded, "content": decoded})


async def tokenizer_info(request: Request) -> Response:
    """What a client may need to know about the vocabulary and the chat template."""
    target = server_state(request).models.find(request.query_params.get("model"))
    processor, tokenizer = target.llm.processor, target.llm.tokenizer
    ends = sorted(tokenizer.eos_ids or processor.stop_ids)
    eos = tokenizer.roles.get("eos_token", tokenizer.token_bytes(ends[0]).decode("utf-8", "replace"))
    return JSONResponse(
        {
            "model": target.model.name,
            "dialect": processor.dialect.name,
            "vocab_size": target.llm.info.vocab_size,
            "named_tokens": tokenizer.size,
            "max_model_len": target.llm.info.max_model_len,
            "prefix_ids": list(tokenizer.prefix_ids),
            "stop_ids": sorted(processor.stop_ids),
            "special_tokens": dict(tokenizer.special_tokens),
            **{role: tokenizer.roles.get(role) for role in ROLES},
            "eos_token": eos,
            "chat_template": processor.chat_template.source,
        }
    )


async def render(request: Request) -> Response:
    """The prompt a chat body becomes, as text and ids, without answering it."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    await InputFiles.of(request).chat(body)
    chat = await parse(lambda: parse_chat(body, target.llm.default_sampling_params()))
    prepared = await prepare_chat(target, chat.request, runs=False)
    ids = prepared.prompt_ids
    prompt = target.llm.processor.text_of(prepared.prompt)
    return JSONResponse({"prompt": prompt, "prompt_token_ids": ids, "count": len(ids)})
