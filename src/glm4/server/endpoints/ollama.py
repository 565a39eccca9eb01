"""POST /api/chat, /api/generate, /api/embed and /api/embeddings: Ollama's native API over the same models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.api.fields import Field, read_fields
from glm4.api.ollama import AnswerLines, OllamaRequest, durations, joined, opened, parse_chat, parse_generate
from glm4.api.ollama.fields import EMBED_FIELDS, OLD_EMBED_FIELDS, OPTION_FIELDS
from glm4.errors import InvalidRequestError, PromptTooLongError
from glm4.outputs import RequestOutput
from glm4.requests.input_processor import PreparedRequest
from glm4.server.endpoints.ollama_models import find_target
from glm4.server.generation import Generation, whole_many
from glm4.server.memory import parse, prepare
from glm4.server.pictures import prepare_chat
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import EventStream, json_line, ollama_failure, until_disconnect

LINES = "application/x-ndjson"


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    return await _generating(request, parse_chat)


async def generate(request: Request) -> Response:
    """Answer one prompt; a raw one is continued."""
    return await _generating(request, parse_generate)


async def _generating(request: Request, read: Callable[..., OllamaRequest]) -> Response:
    state = server_state(request)
    body = await state.read(request)
    target = find_target(state, request, body)
    llm = target.llm
    settings = {"context": llm.info.max_model_len, "thinks": llm.dialect.thinks}
    wanted = await parse(partial(read, body, llm.default_sampling_params(), **settings))
    if wanted.prompt is None:
        return JSONResponse(opened(target.name, is_chat=wanted.is_chat, done_reason="load"))
    return await until_disconnect(request, _answer(state, target, wanted))


async def _answer(state: ServerState, target: Target, wanted: OllamaRequest) -> Response:
    generation = Generation(state, target, await _prepare(target, wanted))
    lines = AnswerLines(wanted, target.name, target.llm.tokenizer)
    if wanted.stream:
        await generation.start()
        return EventStream(
            _events(generation, lines),
            failure=ollama_failure,
            silence=json_line(lines.silence()),
            media_type=LINES,
            config=state.config,
            on_close=generation.close,
        )
    written: list[dict[str, Any]] = []
    try:
        await generation.start()
        async for chunk in generation.chunks():
            written += lines.push(chunk)
    finally:
        await generation.close()
    return JSONResponse(joined(written))


async def _prepare(target: Target, wanted: OllamaRequest) -> PreparedRequest:
    if not isinstance(wanted.prompt, str):
        assert wanted.prompt is not None  # noqa: S101 (`_generating` has answered that)
        return await prepare_chat(target, wanted.prompt)
    # Who sends a raw prompt writes the chat format's special tokens, too.
    encode = partial(target.llm.prepare_prompt, wanted.prompt, wanted.params, parse_special=True)
    return await prepare(target.longest_text, partial(encode, adapter=target.adapter))


async def _events(generation: Generation, lines: AnswerLines) -> AsyncGenerator[bytes, None]:
    async for chunk in generation.chunks():
        body = b"".join(json_line(line) for line in lines.push(chunk))
        if body:
            yield body


async def embed(request: Request) -> Response:
    """One vector of unit length per text."""
    target, given, outputs = await _embedded(request, EMBED_FIELDS, "input")
    vectors = [_shortened(output.as_embedding().embedding, given.get("dimensions")).tolist() for output in outputs]
    times = [durations(output.metrics) for output in outputs]
    return JSONResponse(
        {
            "model": target.name,
            "embeddings": vectors,
            "total_duration": max((one["total_duration"] for one in times), default=0),
            "load_duration": 0,
            "prompt_eval_count": sum(len(output.prompt_token_ids) for output in outputs),
        }
    )


async def embeddings(request: Request) -> Response:
    """The older form: one text, one vector."""
    _, _, outputs = await _embedded(request, OLD_EMBED_FIELDS, "prompt")
    vectors = [output.as_embedding().embedding.tolist() for output in outputs]
    return JSONResponse({"embedding": vectors[0] if vectors else []})


async def _embedded(
    request: Request, table: Mapping[str, Field], name: str
) -> tuple[Target, Mapping[str, Any], list[RequestOutput]]:
    state = server_state(request)
    body = await state.read(request)
    target = find_target(state, request, body)
    given = await parse(lambda: read_fields(body, table))
    read_fields(given.get("options", {}), OPTION_FIELDS)
    if name not in given:
        raise InvalidRequestError(f"{name} is missing", param=name)
    texts = [given[name]] if isinstance(given[name], str) else given[name]

    def prepare_all() -> list[PreparedRequest]:
        return [_prepare_text(target, one, truncate=given.get("truncate", True)) for one in texts]

    async def compute() -> list[RequestOutput]:
        return await whole_many(state, target, await prepare(target.longest_text, prepare_all))

    return target, given, await until_disconnect(request, compute())


def _prepare_text(target: Target, text: str, *, truncate: bool) -> PreparedRequest:
    try:
        return target.llm.prepare_embedding(text, adapter=target.adapter)
    except PromptTooLongError:
        if not truncate:
            raise
    most = target.llm.context(target.adapter) - 1
    ids: Sequence[int] = target.llm.tokenizer.encode_prompt(text, most=most)
    return target.llm.prepare_embedding(list(ids[:most]), adapter=target.adapter)


def _shortened(vector: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    if size is None or size == len(vector):
        return vector
    if size > len(vector):
        raise InvalidRequestError(f"dimensions is {size}; this model's vectors have {len(vector)}", param="dimensions")
    kept = vector[:size]
    return np.divide(kept, max(float(np.linalg.norm(kept)), 1e-12), dtype=np.float32)
