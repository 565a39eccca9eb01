"""Preparing conversations. What waits for their pictures takes neither threads nor turns from other requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from glm4.chat.chat_request import ChatRequest
from glm4.chat.parts import MAX_MEDIA_NBYTES, ImagePart
from glm4.chat.pictures import images_of
from glm4.requests.input_processor import PreparedRequest
from glm4.server.memory import current_body, parse, prepare
from glm4.server.registry import Target


async def prepare_chat(target: Target, request: ChatRequest, *, runs: bool = True) -> PreparedRequest:
    """Render and tokenize with the adapter that the request's model name selects; errors name fields of the request.

    Args:
        runs: False if the prompt is only looked at: then no picture is fetched or decoded.
    """
    llm, body = target.llm, current_body()
    request = replace(request, adapter=target.adapter)
    pictures = await parse(partial(images_of, request.messages))
    image = llm.processor.image
    sent = encoded_nbytes(pictures)
    if not pictures or not runs or image is None or body is None:
        return await prepare(target.longest_text, partial(llm.prepare_text, request), aside=sent)
    pixels = len(pictures) * image.nbytes
    await body.hold_pictures(pixels + sum(part.url is not None for part in pictures) * MAX_MEDIA_NBYTES)
    request = await body.wait(partial(llm.fetched, request))
    prepared = await prepare(target.longest_text, partial(llm.prepare_text, request), aside=sent)
    del request  # and the files that were fetched
    prepared = await body.wait(partial(llm.decode_pictures, prepared))
    await body.hold_pictures(pixels)
    return prepared


async def prepare_prompts(
    target: Target, make: Callable[[], list[PreparedRequest]], pictures: Sequence[ImagePart]
) -> list[PreparedRequest]:
    """Prepare raw prompts that have these pictures in all; `make` is everything but decoding these."""
    llm, body = target.llm, current_body()
    batch = await prepare(target.longest_text, make, aside=encoded_nbytes(pictures))
    image = llm.processor.image
    if not pictures or image is None or body is None:
        return batch
    await body.hold_pictures(len(pictures) * image.nbytes)
    return await body.wait(lambda: [llm.decode_pictures(prepared) for prepared in batch])


def encoded_nbytes(pictures: Sequence[ImagePart]) -> int:
    """Bytes of a body that are pictures in base64."""
    return sum((len(part.data) + 2) // 3 * 4 for part in pictures if part.data is not None)
