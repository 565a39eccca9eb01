"""llama.cpp's own endpoints, for programs and tests written for its server.

POST /completion, /completions, /apply-template and …/input_tokens, GET /props and /slots.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4 import __version__
from glm4.api.llama_cpp import (
    MEDIA_MARKER,
    LlamaCppRequest,
    LlamaCppWriter,
    parse_completion,
    pictures_of,
    prompt_ids,
)
from glm4.api.openai import parse_chat
from glm4.chat.parts import ImagePart
from glm4.requests.input_processor import PreparedRequest
from glm4.requests.prompt_forms import PromptLike
from glm4.server.agent.input_files import InputFiles
from glm4.server.generation import Generation, whole_many
from glm4.server.memory import parse
from glm4.server.pictures import prepare_chat, prepare_prompts
from glm4.server.registry import Target
from glm4.server.state import ServerState, server_state
from glm4.server.streaming import EventStream, event, until_disconnect


async def completion(request: Request) -> Response:
    """Continue one prompt, or a list of them."""
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    llm = target.llm
    wanted = await parse(partial(parse_completion, body, llm.default_sampling_params(), llm.tokenizer))
    return await until_disconnect(request, _answer(state, target, wanted))


async def _answer(state: ServerState, target: Target, wanted: LlamaCppRequest) -> Response:
    llm = target.llm
    writer = LlamaCppWriter(wanted, target.name, llm.tokenizer, llm.info.max_model_len)

    pictures = await parse(lambda: [pictures_of(prompt) for prompt in wanted.prompts])
    sees = llm.processor.image is not None
    encode = partial(
        prompt_ids,
        tokenizer=llm.tokenizer,
        marks=llm.dialect.mark_ids(llm.tokenizer) if sees else (),
        parse_special=state.config.parse_special,
        most=llm.info.max_model_len,
    )

    def prepare_all() -> list[PreparedRequest]:
        one = partial(llm.prepare_text_prompt, params=wanted.params, adapter=target.adapter)
        return [one(_raw(encode(prompt), images)) for prompt, images in zip(wanted.prompts, pictures, strict=True)]

    batch = await prepare_prompts(target, prepare_all, [part for one in pictures for part in one])
    if not wanted.stream:
        bodies = [writer.whole(*numbered) for numbered in enumerate(await whole_many(state, target, batch))]
        return JSONResponse(bodies if wanted.several else bodies[0])
    generation = Generation(state, target, batch[0])
    await generation.start()
    return EventStream(_events(generation, writer), config=state.config, on_close=generation.close)


def _raw(ids: list[int], images: Sequence[ImagePart]) -> PromptLike:
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": images}} if images else ids


async def _events(generation: Generation, writer: LlamaCppWriter) -> AsyncGenerator[bytes, None]:
    async for chunk in generation.chunks():
        for one in writer.events(chunk, len(generation.prepared.prompt_ids)):
            yield event(one)


async def props(request: Request) -> Response:
    """The server's settings: its context, its slots, its chat template."""
    target = server_state(request).models.find(request.query_params.get("model"))
    processor, defaults = target.llm.processor, target.llm.default_sampling_params()
    settings = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
    }
    return JSONResponse(
        {
            "default_generation_settings": {"n_ctx": target.llm.info.max_model_len, "params": settings},
            "total_slots": target.llm.info.max_num_seqs,
            "model_alias": target.model.name,
            "chat_template": processor.chat_template.source,
            "modalities": {"vision": processor.image is not None, "audio": False},
            "media_marker": MEDIA_MARKER,
            "build_info": f"glm4 {__version__}",
            "is_sleeping": False,
        }
    )


async def slots(request: Request) -> Response:
    """The slots of the batch. Requests have no fixed slot, so busy ones are simply listed first."""
    target = server_state(request).models.find(request.query_params.get("model"))
    running, context = target.llm.stats().num_running, target.llm.info.max_model_len
    places = range(target.llm.info.max_num_seqs)
    return JSONResponse([{"id": place, "n_ctx": context, "is_processing": place < running} for place in places])


async def apply_template(request: Request) -> Response:
    """The prompt a chat body becomes, as text."""
    target, prepared = await _prepared(request)
    return JSONResponse({"prompt": target.llm.processor.text_of(prepared.prompt)})


async def input_tokens(request: Request) -> Response:
    """The number of tokens in a chat body's prompt."""
    _, prepared = await _prepared(request)
    count: dict[str, Any] = {"object": "chat.completion.input_tokens", "input_tokens": len(prepared.prompt_ids)}
    return JSONResponse(count)


async def _prepared(request: Request) -> tuple[Target, PreparedRequest]:
    state = server_state(request)
    body = await state.read(request)
    target = state.target(request, body)
    await InputFiles.of(request).chat(body)
    chat = await parse(partial(parse_chat, body, target.llm.default_sampling_params()))
    return target, await prepare_chat(target, chat.request, runs=False)
