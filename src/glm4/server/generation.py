"""`Generation`: one prepared request on its way through queue, engine, metrics and time limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeVar

import anyio

from glm4.api.openai.answers import prompt_text
from glm4.async_llm import RequestStream
from glm4.errors import Glm4Error
from glm4.outputs import RequestOutput, StreamChunk
from glm4.requests.input_processor import PreparedRequest
from glm4.server.errors import ApiError, log
from glm4.server.registry import Target
from glm4.server.state import ServerState

_T = TypeVar("_T")


class Generation:
    """One request in the engine. `start` it, iterate over its chunks, and always `close` it."""

    def __init__(self, state: ServerState, target: Target, prepared: PreparedRequest) -> None:
        self.target = target
        share = target.admission.share
        self.prepared = replace(
            prepared, cache_salt=target.salt, max_running=share if prepared.params.n > share else None
        )
        self._timeout = state.config.request_timeout
        self._timer = state.metrics.begin(
            target.model.name, len(prepared.prompt_ids), prepared.params.n, prepared.params.max_tokens
        )
        self._stack = AsyncExitStack()
        self._stream: RequestStream | None = None
        self._reasons: dict[int, str] = {}
        if state.config.log_prompts:
            text = prompt_text(None, prepared.prompt_ids, target.llm.tokenizer)
            log.info("prompt for %s: %r", target.name, text)

    async def start(self) -> None:
        """Wait for a slot and hand the request to the engine.

        Raises:
            ApiError: no slot (429, 503), or none before the request's time was over (504).
            InvalidRequestError: the engine rejects it.
        """
        loop = asyncio.get_running_loop()
        too_long = ApiError(504, f"the answer took longer than {self._timeout or 0:g} seconds", code="timeout")
        try:
            with anyio.fail_after(self._timeout) as scope:
                await self._stack.enter_async_context(self.target.admission.slot(self.prepared.params.n))
                self._stream = await self.target.engine.submit(self.prepared)
        except BaseException as error:
            await self.close()
            raise too_long if isinstance(error, TimeoutError) else error from None
        self._stack.callback(self._stream.close)
        if self._timeout is not None:
            timer = loop.call_at(scope.deadline, self._stream.put, too_long)
            self._stack.callback(timer.cancel)
        self._timer.admitted()

    async def chunks(self) -> AsyncIterator[StreamChunk]:
        """The engine's output, step by step."""
        assert self._stream is not None  # noqa: S101 (`start` has been called)
        async for chunk in self._stream:
            self._timer.tokens(len(chunk.token_ids))
            if chunk.finish_reason is not None:
                self._reasons[chunk.index] = chunk.finish_reason
            yield chunk

    async def output(self) -> RequestOutput:
        """The whole answer."""
        async for chunk in self.chunks():
            if chunk.output is not None:
                return chunk.output
        raise Glm4Error("the stream ended without an answer")

    async def close(self) -> None:
        """Abort what still runs, release the slot, record the times. Idempotent."""
        if self._stream is not None:
            missing = self.prepared.params.n - len(self._reasons)
            self._timer.finished([*self._reasons.values(), *["abort"] * missing])
            self._stream = None
        await self._stack.aclose()


async def whole(state: ServerState, target: Target, prepared: PreparedRequest) -> RequestOutput:
    """Answer one prepared request."""
    generation = Generation(state, target, prepared)
    try:
        await generation.start()
        return await generation.output()
    finally:
        await generation.close()


async def whole_many(state: ServerState, target: Target, batch: Sequence[PreparedRequest]) -> list[RequestOutput]:
    """Answer several, as many at a time as one client may have; if one fails, all end."""
    free = asyncio.Semaphore(target.admission.share)

    async def one(prepared: PreparedRequest) -> RequestOutput:
        async with free:
            return await whole(state, target, prepared)

    tasks = [asyncio.ensure_future(one(prepared)) for prepared in batch]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def interleaved(
    state: ServerState, target: Target, batch: Sequence[PreparedRequest]
) -> AsyncGenerator[tuple[int, StreamChunk], None]:
    """The chunks of several requests as they arrive, each with its request's position."""
    free = asyncio.Semaphore(target.admission.share)
    # Bounded, so that a slow reader makes the streams behind it merge their chunks instead of filling this queue.
    queue: asyncio.Queue[tuple[int, StreamChunk] | BaseException] = asyncio.Queue(maxsize=2 * len(batch))

    async def one(position: int, prepared: PreparedRequest) -> None:
        async with free:
            generation = Generation(state, target, prepared)
            try:
                await generation.start()
                async for chunk in generation.chunks():
                    await queue.put((position, chunk))
            except Exception as error:
                await queue.put(error)
            finally:
                await generation.close()

    tasks = [asyncio.ensure_future(one(*item)) for item in enumerate(batch)]
    try:
        left = len(batch)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            left -= item[1].output is not None
            yield item
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[_T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
