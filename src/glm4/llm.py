"""`LLM`: load a model and talk to it. Callers see messages and text, backends see token ids.

The facade is synchronous: `step()` advances every running request by one step of the backend. `run_steps` is the one
loop around it; whole answers, streams, batches and the command line iterate over it. `async_llm.AsyncLLM` runs the
same loop on a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, cast

from glm4.backends.base import Backend, BackendInfo
from glm4.chat.chat_request import ChatOptions, ChatRequest, Conversation
from glm4.chat.dialects.table import Dialect
from glm4.chat.messages import Message
from glm4.engine.protocol import AdapterInfo, EngineStats
from glm4.errors import Glm4Error, InvalidRequestError
from glm4.hub.store import Progress
from glm4.open_model import ModelOptions, OpenModel, open_model
from glm4.outputs import EmbeddingOutput, RequestOutput, StreamChunk
from glm4.prompt import Prompt
from glm4.requests.input_processor import InputProcessor, PreparedRequest, PromptLike, PromptOptions
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.processor import Processor
from glm4.requests.request_state import RequestState
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Request = ChatRequest | PreparedRequest
Params = SamplingParams | Sequence[SamplingParams] | None
"""One for all prompts, one per prompt, or None for the model's own defaults."""


class LLM:
    """A model, ready for chat and completion.

    Args:
        model: a name (`starter`, `glm-4-9b-chat`, `THUDM/glm-4-9b-chat-hf` …), a folder or a GGUF file.
        backend: "local" computes in this process; "remote" asks an OpenAI-compatible server (`base_url`), and needs
            only the model's tokenizer and configuration here.
        progress: called with (stage, done, total) while downloading and loading.
        options: how to run it: attributes of `backends.local.LocalOptions` or `backends.remote.RemoteOptions`.

    The first load of a large model saves its int8, int4 or stored weights packed on disk; later loads only map a file
    (see `packed_cache`; GLM4_PACKED_CACHE_GB=0 turns it off). `checkpoint` is then the packed copy.

    Raises:
        InvalidRequestError: there is no such backend or option.
        Glm4Error: the model cannot be found, fetched, read, or does not fit; see `errors`.
    """

    def __init__(
        self,
        model: str = "starter",
        *,
        backend: str = "local",
        progress: Progress | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        self._start(open_model(model, backend=backend, progress=progress, options=options))

    @classmethod
    def from_backend(cls, backend: Backend, processor: Processor) -> LLM:
        """Build an `LLM` from any backend and the processor that handles its text."""
        self = cls.__new__(cls)
        self._start(OpenModel(backend, processor))
        return self

    def _start(self, opened: OpenModel) -> None:
        self._opened = opened
        self.backend = opened.backend
        self.processor = opened.processor
        self.checkpoint = opened.checkpoint
        self._inputs = InputProcessor(opened.processor, opened.backend.info)
        self._running: dict[str, RequestState] = {}
        self._owners: dict[str, str] = {}
        # Chunks of the requests that a `run_steps` loop owns; `step` returns all others.
        self._claimed: dict[str, deque[StreamChunk]] = {}
        self._unclaimed: list[StreamChunk] = []
        self._numbers = count(1)

    @property
    def info(self) -> BackendInfo:
        """Limits and precision of the backend."""
        return self.backend.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.processor.tokenizer

    @property
    def dialect(self) -> Dialect:
        """The checkpoint's chat dialect."""
        return self.processor.dialect

    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint authors' recommended settings (generation_config.json and our table of variants)."""
        return self.processor.defaults

    # Requests

    def prepare(self, request: ChatRequest) -> PreparedRequest:
        """Do all the work on a conversation that does not need the engine. Thread-safe; see `add`.

        Raises:
            InvalidRequestError, PromptTooLongError, TemplateError: the request can never run.
        """
        return self._inputs.chat(request)

    def render(self, request: ChatRequest) -> Prompt:
        """The prompt of a conversation, which may exceed the context. Thread-safe; see `prepare` for the errors."""
        return self._inputs.conversation(request)[0]

    def prepare_chat(
        self, messages: Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> PreparedRequest:
        """`prepare` for a plain list of messages; options are the attributes of `ChatRequest`."""
        return self.prepare(ChatRequest.of(messages, params, **options))

    def prepare_prompt(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> PreparedRequest:
        """`prepare` for a raw prompt: text (encoded with the model's usual prefix), ids, or a `Prompt`. Thread-safe."""
        return self._inputs.prompt(prompt, params, adapter=adapter, **options)

    def prepare_embedding(self, prompt: PromptLike, *, adapter: str | None = None) -> PreparedRequest:
        """`prepare` for a text to embed; its `RequestOutput` has the vector. Thread-safe."""
        return self._inputs.embedding(prompt, adapter=adapter)

    def add(self, request_id: str, prepared: PreparedRequest) -> None:
        """Queue a prepared request. Cheap; like `step`, call it only from the thread that owns this object.

        Raises:
            InvalidRequestError: the id is in use, a token id is outside the vocabulary, or there is no such adapter;
                nothing is queued.
        """
        if request_id in self._running:
            raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
        params = prepared.params
        running = RequestState(
            request_id, prepared.text, list(prepared.prompt_ids), num_added_ids=prepared.num_added_ids
        )
        running.metrics.num_prompt_tokens = len(prepared.prompt)
        for index in range(params.n):
            backend_id = f"{request_id}#{index}"
            try:
                self.backend.add_request(prepared.sample(backend_id, self.processor.stop_ids, index))
            except InvalidRequestError:
                for added in running.samples:
                    self.backend.abort(added)
                    del self._owners[added]
                raise
            detokenizer, parser = prepared.decoder()
            running.samples[backend_id] = SampleProcessor(
                index, params, detokenizer, parser, partial(self.backend.abort, backend_id), prepared.max_tool_calls
            )
            self._owners[backend_id] = request_id
        self._running[request_id] = running

    def abort(self, request_id: str) -> None:
        """Stop a request at once and free its resources; no more chunks follow. Unknown ids are ignored."""
        running = self._running.pop(request_id, None)
        if running is not None:
            for backend_id in running.samples:
                self.backend.abort(backend_id)
                self._owners.pop(backend_id, None)
        self._claimed.pop(request_id, None)
        self._unclaimed = [chunk for chunk in self._unclaimed if chunk.request_id != request_id]

    def wake(self) -> None:
        """Make the running `step`, or the next one, return without waiting. Callable from any thread."""
        self.backend.wake()

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do or to return."""
        return bool(self._running) or bool(self._unclaimed)

    def step(self) -> list[StreamChunk]:
        """Advance everything by one step; returns the chunks of requests that `run_steps` does not own."""
        if self._running:
            self._advance()
        chunks, self._unclaimed = self._unclaimed, []
        return chunks

    def _advance(self) -> None:
        for new in self.backend.step():
            request_id = self._owners.get(new.request_id)
            if request_id is None:
                continue
            running = self._running[request_id]
            chunk = running.push(new)
            if new.error is not None:  # the request ends with all of its samples
                for backend_id in running.samples:
                    self.backend.abort(backend_id)
            if running.finished:
                del self._running[request_id]
                for backend_id in running.samples:
                    del self._owners[backend_id]
            if chunk is not None:
                self._claimed.get(request_id, self._unclaimed).append(chunk)
            if running.finished:
                self._claimed.pop(request_id, None)

    # LoRA adapters and statistics: callable from any thread

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter in PEFT format from a folder; requests select it by name (`adapter=`).

        Raises:
            InvalidRequestError: the name is taken, or there are too many adapters.
            CheckpointError, OutOfMemoryError: it cannot be used with this model, or does not fit.
        """
        return self.backend.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests that name this adapter; queued and running ones finish.

        Raises:
            InvalidRequestError: there is no such adapter.
        """
        self.backend.unload_adapter(name)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        return self.backend.adapters()

    def stats(self) -> EngineStats:
        """Counters for a metrics page."""
        return self.backend.stats()

    # The loop and everything built on it

    def run_steps(
        self, requests: Iterable[tuple[str, Request]], *, in_flight: int | None = None
    ) -> Generator[list[StreamChunk], None, None]:
        """Run requests to completion; yields the chunks of each step. Closing the iterator aborts unfinished requests.

        Args:
            requests: (request id, request); pulled from the iterable and prepared as slots become free.
            in_flight: samples queued at once. None means twice `max_num_seqs`, so that the backend always has work.

        Raises:
            InvalidRequestError: as `prepare` and `add`; the other requests are aborted.
        """
        pending = iter(requests)
        capacity = in_flight or 2 * self.info.max_num_seqs
        samples: dict[str, int] = {}
        arrived: deque[StreamChunk] = deque()
        try:
            while True:
                while sum(samples.values()) < capacity and (item := next(pending, None)) is not None:
                    request_id, request = item
                    prepared = self.prepare(request) if isinstance(request, ChatRequest) else request
                    self.add(request_id, prepared)
                    self._claimed[request_id] = arrived
                    samples[request_id] = prepared.params.n
                if not samples:
                    return
                if not arrived:  # otherwise another loop's step has already delivered chunks for this one
                    self._advance()
                chunks = list(arrived)
                arrived.clear()
                samples = {name: count for name, count in samples.items() if name in self._running}
                yield chunks
        finally:
            for request_id in samples:
                self.abort(request_id)

    def run(self, requests: Iterable[tuple[str, Request]], *, in_flight: int | None = None) -> Iterator[RequestOutput]:
        """The answers from `run_steps`, in completion order."""
        for chunk in chain.from_iterable(self.run_steps(requests, in_flight=in_flight)):
            if chunk.output is not None:
                yield chunk.output

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answer one or more conversations.

        Args:
            messages: a list of messages (dictionaries in OpenAI's form, or `Message`), or a list of such lists.
            sampling_params: one for all, or one per conversation; None means `default_sampling_params()`.
            options: tools, tool_choice, parallel_tool_calls, add_generation_prompt, continue_final_message,
                template_kwargs, adapter: see `ChatRequest`.

        Returns:
            One `RequestOutput` per conversation, in order.

        Raises:
            Glm4Error: every request failed. If only some failed, those outputs have an `error`.
        """
        return self._answers(self._prepared_chats(messages, sampling_params, options))

    def stream_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[StreamChunk, None, None]:
        """`chat`, chunk by chunk; dropping or closing the iterator aborts unfinished requests."""
        return self._chunks(self._prepared_chats(messages, sampling_params, options))

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Params = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[RequestOutput]:
        """Continue one or more raw prompts (text or token ids); see `PromptOptions`, and `chat` for the rest."""
        return self._answers(self._prepared_prompts(prompts, sampling_params, adapter, options))

    def stream_generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Params = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Generator[StreamChunk, None, None]:
        """`generate`, chunk by chunk; dropping or closing the iterator aborts unfinished requests."""
        return self._chunks(self._prepared_prompts(prompts, sampling_params, adapter, options))

    def embed(self, prompts: PromptLike | Sequence[PromptLike], *, adapter: str | None = None) -> list[EmbeddingOutput]:
        """Embed one or more texts (text or token ids); see `EmbeddingOutput` for what the vectors are.

        Raises:
            PromptTooLongError: a text is longer than the context.
            Glm4Error: a text cannot be embedded.
        """
        prepared = [self.prepare_embedding(prompt, adapter=adapter) for prompt in _prompts(prompts)]
        return [output.as_embedding() for output in self._answers(prepared)]

    def _prepared_chats(
        self, messages: Conversation | Sequence[Conversation], sampling_params: Params, options: ChatOptions
    ) -> list[PreparedRequest]:
        conversations = cast("list[Conversation]", messages if _is_batch(messages) else [messages])
        pairs = zip(conversations, _each(sampling_params, len(conversations)), strict=True)
        return [self.prepare_chat(conversation, params, **options) for conversation, params in pairs]

    def _prepared_prompts(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Params,
        adapter: str | None,
        options: PromptOptions,
    ) -> list[PreparedRequest]:
        listed = _prompts(prompts)
        pairs = zip(listed, _each(sampling_params, len(listed)), strict=True)
        return [self.prepare_prompt(prompt, params, adapter=adapter, **options) for prompt, params in pairs]

    def _answers(self, prepared: Sequence[PreparedRequest]) -> list[RequestOutput]:
        """All answers in order. All are queued first, so that one bad request fails the call before any runs."""
        named = self._named(prepared)
        outputs = {output.request_id: output for output in self.run(named, in_flight=_samples(prepared))}
        _raise_if_all_failed([output.error for output in outputs.values()])
        return [outputs[request_id] for request_id, _ in named]

    def _chunks(self, prepared: Sequence[PreparedRequest]) -> Generator[StreamChunk, None, None]:
        errors: list[Glm4Error | None] = []
        with closing(self.run_steps(self._named(prepared), in_flight=_samples(prepared))) as steps:
            for chunk in chain.from_iterable(steps):
                if chunk.output is not None:
                    errors.append(chunk.output.error)
                    if len(errors) == len(prepared):
                        _raise_if_all_failed(errors)
                yield chunk

    def _named(self, prepared: Sequence[PreparedRequest]) -> list[tuple[str, PreparedRequest]]:
        return [(f"llm-{next(self._numbers)}", request) for request in prepared]

    def close(self) -> None:
        """Abort everything and free the model's memory. Waits if the packed cache is still being written."""
        for request_id in list(self._running):
            self.abort(request_id)
        self._inputs.close()
        self._opened.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raise_if_all_failed(errors: Sequence[Glm4Error | None]) -> None:
    """Raise the first error if every request of a call failed."""
    if errors and None not in errors:
        raise next(error for error in errors if error is not None)


def _each(params: Params, count: int) -> Sequence[SamplingParams | None]:
    """Sampling options for each of the `count` prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequestError(
            f"{count} prompts, but {len(params)} sampling_params; give one for all, or one per prompt",
            param="sampling_params",
        )
    return params


def _samples(prepared: Sequence[PreparedRequest]) -> int:
    return sum(request.params.n for request in prepared)


def _prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    single = isinstance(prompts, (str, Prompt)) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return cast("list[PromptLike]", [prompts] if single else list(cast("Sequence[PromptLike]", prompts)))


def _is_batch(messages: Conversation | Sequence[Conversation]) -> bool:
    return bool(messages) and not isinstance(messages[0], (Message, Mapping))
