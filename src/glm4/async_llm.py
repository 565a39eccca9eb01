"""`AsyncLLM`: `LLM` on a thread of its own, for servers and asyncio programs. A thin adapter, no second engine."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from glm4.errors import Glm4Error
from glm4.generation import AdapterInfo
from glm4.llm import LLM
from glm4.outputs import EmbeddingOutput, RequestOutput, StreamChunk
from glm4.prepared_request import Conversation, PreparedRequest, Prompt
from glm4.sampling_params import SamplingParams

_Item = StreamChunk | BaseException


class AsyncLLM:
    """Asynchronous twin of `LLM`: the same requests, chunks and errors.

    One thread owns the `LLM` and steps it; commands go in through a queue, chunks come back to the event loop of
    whoever asked. Cancelling a task that iterates a stream aborts its request within one step.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._sinks: dict[str, Callable[[_Item], None]] = {}
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._loop, name="glm4-engine", daemon=True)
        self._thread.start()

    @classmethod
    async def create(cls, model: str = "starter", **options: Any) -> AsyncLLM:
        """Load a model without blocking the event loop; options are those of `LLM`."""
        return cls(await asyncio.to_thread(LLM, model, **options))

    async def stream_chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        **options: Any,
    ) -> AsyncIterator[StreamChunk]:
        """Answer a conversation, chunk by chunk; options are those of `LLM.prepare_chat`."""
        prepared = await asyncio.to_thread(self.llm.prepare_chat, messages, sampling_params, **options)
        async for chunk in self._stream(prepared):
            yield chunk

    async def stream_generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Continue a raw prompt, chunk by chunk."""
        prepared = await asyncio.to_thread(self.llm.prepare_prompt, prompt, sampling_params, adapter=adapter)
        async for chunk in self._stream(prepared):
            yield chunk

    async def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        **options: Any,
    ) -> RequestOutput:
        """Answer a conversation; options are those of `LLM.prepare_chat`."""
        return await _last_output(self.stream_chat(messages, sampling_params, **options))

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> RequestOutput:
        """Continue a raw prompt."""
        return await _last_output(self.stream_generate(prompt, sampling_params, adapter=adapter))

    async def embed(self, prompt: Prompt, *, adapter: str | None = None) -> EmbeddingOutput:
        """Embed one text; several at once share batches."""
        prepared = await asyncio.to_thread(self.llm.prepare_embedding, prompt, adapter=adapter)
        return (await _last_output(self._stream(prepared))).as_embedding()

    async def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter while requests run; see `LLM.load_adapter`. Unloading (`llm.unload_adapter`) is quick."""
        return await asyncio.to_thread(self.llm.load_adapter, name, path)

    async def close(self) -> None:
        """Stop the thread and free the model; streams that still run end with an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def _stream(self, prepared: PreparedRequest) -> AsyncIterator[StreamChunk]:
        request_id = f"async-{next(self._ids)}"
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[_Item] = asyncio.Queue()

        def deliver(item: _Item) -> None:
            # The loop may be gone when a program ends in the middle of a stream; nobody waits for the item then.
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def start() -> None:
            self._sinks[request_id] = deliver
            try:
                self.llm.add(request_id, prepared)
            except Exception as error:  # handed to the task that asked, not lost on the engine's thread
                del self._sinks[request_id]
                deliver(error)

        self._submit(start)
        finished = False
        try:
            while not finished:
                item = await queue.get()
                finished = isinstance(item, BaseException) or item.output is not None
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            if not finished:
                self._submit(lambda: self._drop(request_id))

    def _submit(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise Glm4Error("the model was closed")
            self._commands.append(command)
            self._wake.notify()

    def _drop(self, request_id: str) -> None:
        self._sinks.pop(request_id, None)
        self.llm.abort(request_id)

    def _loop(self) -> None:
        failure: BaseException = Glm4Error("the model was closed")
        try:
            while self._wait_for_work():
                while self._commands:
                    self._commands.popleft()()
                for chunk in self.llm.step():
                    sink = self._sinks.get(chunk.request_id)
                    if sink is not None:
                        sink(chunk)
                    if chunk.output is not None:
                        self._sinks.pop(chunk.request_id, None)
        except Exception as error:  # a failing engine ends every stream with its reason instead of hanging them
            failure = error
        with self._wake:
            self._closed = True
        for sink in list(self._sinks.values()):
            sink(failure)
        self.llm.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not self._closed and not self._commands and not self.llm.has_unfinished_requests():
                self._wake.wait()
            return not self._closed


async def _last_output(stream: AsyncIterator[StreamChunk]) -> RequestOutput:
    async for chunk in stream:
        if chunk.output is not None:
            return chunk.output
    raise Glm4Error("the stream ended without an answer")
