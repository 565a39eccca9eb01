"""`AsyncLLM`: `LLM` on its own thread, for servers and asyncio programs. A thin adapter, not a second engine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from glm4.chat.chat_request import Conversation
from glm4.engine.protocol import AdapterInfo
from glm4.errors import Glm4Error, ModelClosedError, request_error
from glm4.llm import LLM
from glm4.outputs import EmbeddingOutput, RequestOutput, StreamChunk
from glm4.requests.input_processor import PreparedRequest
from glm4.requests.prompt_forms import PromptLike
from glm4.sampling_params import SamplingParams
from glm4.system.event_loops import post, set_outcome

log = logging.getLogger("glm4.engine")

_Item = StreamChunk | BaseException
_T = TypeVar("_T")

# Chunks that wait for a slow reader before they are merged: memory then grows with the text only, not with the steps.
_MOST_WAITING = 32


class RequestStream:
    """The chunks of one running request, as an asynchronous iterator. Close it to abort what still runs."""

    def __init__(self, owner: AsyncLLM, request_id: str) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._owner = owner
        self._waiting: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._finished = False

    def put(self, item: _Item) -> None:
        """Add a chunk, or the error that ends the stream. Only on the event loop."""
        self._waiting.append(item)
        if len(self._waiting) > _MOST_WAITING:
            try:
                self._waiting = deque(_joined(self._waiting))
            except Exception as error:  # ends this stream; the loop has others to deliver to
                self._waiting = deque([request_error(error)])
        self._arrived.set()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> StreamChunk:
        if self._finished:
            raise StopAsyncIteration
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        item = self._waiting.popleft()
        if isinstance(item, BaseException):
            self.close()  # the error may be the reader's own, such as a timeout, while the request still runs
            raise item
        self._finished = item.output is not None
        return item

    async def output(self) -> RequestOutput:
        """Wait for the whole answer."""
        try:
            async for chunk in self:
                if chunk.output is not None:
                    return chunk.output
        finally:
            self.close()
        raise Glm4Error("the stream ended without an answer")

    def close(self) -> None:
        """Abort the request if it still runs. Idempotent."""
        if not self._finished:
            self._finished = True
            self._owner.drop(self.request_id)


def _joined(items: deque[_Item]) -> list[_Item]:
    """Adjacent chunks of one sample merged; errors unchanged."""
    result: list[_Item] = []
    latest: dict[int, int] = {}
    for item in items:
        at = None if isinstance(item, BaseException) else latest.get(item.index)
        if isinstance(item, BaseException) or at is None:
            if isinstance(item, StreamChunk):
                latest[item.index] = len(result)
            result.append(item)
        else:
            before = result[at]
            assert isinstance(before, StreamChunk)  # noqa: S101 (for the type checker: `latest` holds chunks only)
            result[at] = before.followed_by(item)
            if item.output is not None:  # the end of the request stays after its other samples' chunks
                result.append(result.pop(at))
    return result


class AsyncLLM:
    """Asynchronous counterpart of `LLM`: the same requests, chunks and errors.

    One thread owns the `LLM` and steps it; commands enter through a queue, chunks return to the caller's event loop.
    Canceling a task that iterates a stream aborts its request within one step. A slow reader gets larger chunks, not
    more of them.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._streams: dict[str, RequestStream] = {}
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._loop, name="glm4-engine", daemon=True)
        self._thread.start()

    @classmethod
    async def create(cls, model: str = "starter", **options: Any) -> AsyncLLM:
        """Load a model without blocking the event loop; options are those of `LLM`."""
        return cls(await asyncio.to_thread(LLM, model, **options))

    async def stream_chat(
        self, messages: Conversation, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[StreamChunk]:
        """Answer a conversation, chunk by chunk; options are those of `LLM.prepare_chat`."""
        prepared = await asyncio.to_thread(partial(self.llm.prepare_chat, messages, sampling_params, **options))
        async for chunk in self._chunks(prepared):
            yield chunk

    async def stream_generate(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[StreamChunk]:
        """Continue a raw prompt, chunk by chunk; options are those of `LLM.prepare_prompt`."""
        prepared = await asyncio.to_thread(partial(self.llm.prepare_prompt, prompt, sampling_params, **options))
        async for chunk in self._chunks(prepared):
            yield chunk

    async def chat(
        self, messages: Conversation, sampling_params: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Answer a conversation; options are those of `LLM.prepare_chat`."""
        prepared = await asyncio.to_thread(partial(self.llm.prepare_chat, messages, sampling_params, **options))
        return await (await self.submit(prepared)).output()

    async def generate(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Continue a raw prompt; options are those of `LLM.prepare_prompt`."""
        prepared = await asyncio.to_thread(partial(self.llm.prepare_prompt, prompt, sampling_params, **options))
        return await (await self.submit(prepared)).output()

    async def embed(self, prompt: PromptLike, *, adapter: str | None = None) -> EmbeddingOutput:
        """Embed one text; several at once share batches."""
        prepared = await asyncio.to_thread(partial(self.llm.prepare_embedding, prompt, adapter=adapter))
        return (await (await self.submit(prepared)).output()).as_embedding()

    async def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load an adapter while requests run; see `LLM.load_adapter`. Unloading (`llm.unload_adapter`) is fast."""
        return await asyncio.to_thread(self.llm.load_adapter, name, path)

    async def submit(self, prepared: PreparedRequest) -> RequestStream:
        """Hand a prepared request to the engine; returns once the engine has accepted it.

        Raises:
            InvalidRequestError: see `LLM.add`.
        """
        stream = RequestStream(self, f"async-{next(self._ids)}")

        def start() -> None:
            self.llm.add(stream.request_id, prepared)
            self._streams[stream.request_id] = stream

        try:
            await self.call(start)
        except BaseException:
            # A task canceled in between does not know whether the engine accepted the request.
            self.drop(stream.request_id)
            raise
        return stream

    async def call(self, function: Callable[[], _T]) -> _T:
        """Run a function on the engine's thread, between two steps, and wait for its result."""
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        if not self._submit(partial(set_outcome, done, function)):
            raise ModelClosedError
        return await done

    def drop(self, request_id: str) -> None:
        """Abort a request within one step; unknown ids are ignored. From any thread."""

        def drop() -> None:
            self._streams.pop(request_id, None)
            self.llm.abort(request_id)

        self._submit(drop)

    async def close(self) -> None:
        """Stop the thread and free the model; streams that still run end with ModelClosedError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self.llm.wake()
        await asyncio.to_thread(self._thread.join)

    @property
    def failed(self) -> bool:
        """True once the engine's thread has ended, by `close` or by an error."""
        return self._closed

    async def _chunks(self, prepared: PreparedRequest) -> AsyncIterator[StreamChunk]:
        stream = await self.submit(prepared)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            stream.close()

    def _submit(self, command: Callable[[], None]) -> bool:
        """Queue a command; False if the engine has stopped. Wakes the loop from waiting, and a step from blocking."""
        with self._wake:
            if self._closed:
                return False
            self._commands.append(command)
            self._wake.notify()
        self.llm.wake()
        return True

    def _loop(self) -> None:
        failure: BaseException = ModelClosedError()
        try:
            while self._wait_for_work():
                while self._commands:
                    self._commands.popleft()()
                self._deliver(self.llm.step())
        except Exception as error:  # ends every stream with the reason instead of hanging it
            failure = error
            log.critical("the engine has stopped", exc_info=True)
        with self._wake:
            self._closed = True
        while self._commands:  # their callers are waiting for a result
            self._commands.popleft()()
        for stream in list(self._streams.values()):
            post(stream.loop, partial(stream.put, failure))
        self.llm.close()

    def _deliver(self, chunks: list[StreamChunk]) -> None:
        """Send a step's chunks to their event loops, one wake-up per loop; a failed request's reader gets its error."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, _Item]]] = {}
        for chunk in chunks:
            stream = self._streams.get(chunk.request_id)
            if stream is not None:
                error = None if chunk.output is None else chunk.output.error
                by_loop.setdefault(stream.loop, []).append((stream, error or chunk))
            if chunk.output is not None:
                self._streams.pop(chunk.request_id, None)
        for loop, pairs in by_loop.items():
            post(loop, partial(_put_all, pairs))

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not self._closed and not self._commands and not self.llm.has_unfinished_requests():
                self._wake.wait()
            return not self._closed


def _put_all(pairs: list[tuple[RequestStream, _Item]]) -> None:
    for stream, item in pairs:
        stream.put(item)
