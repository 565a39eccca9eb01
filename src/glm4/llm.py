"""`LLM`: load a model and talk to it. Messages and text above, token ids below.

The facade is synchronous: `step()` advances every running request by one step of the backend. Whole answers,
streams and the batch runner are thin loops around it; `async_llm.AsyncLLM` is the same thing on a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast, overload

from glm4.backends.base import Backend, BackendInfo
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.chat.dialects.table import Dialect
from glm4.chat.messages import Message
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.engine.protocol import AdapterInfo, EngineStats
from glm4.errors import CheckpointError, InvalidRequestError, TokenizerError
from glm4.hub import resolve
from glm4.kernels import get_kernels
from glm4.loading.packed_cache import BackgroundWrite, PackedCache, discard
from glm4.outputs import EmbeddingOutput, RequestOutput, StreamChunk
from glm4.requests.input_processor import Conversation, InputProcessor, PreparedRequest, Prompt, Tools
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.processor import Processor
from glm4.requests.request_state import RequestState
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer
from glm4.variants import get_variant

Progress = Callable[[str, float, float], None]


class LLM:
    """A model, ready to chat and to complete.

    Args:
        model: a name (`starter`, `glm-4-9b-chat`, `THUDM/glm-4-9b-chat-hf` …), a folder or a GGUF file.
        dtype: weight precision: "auto" (int8, or "stored" of GGUF files whose weights are mostly 4-bit; int4 where that
            does not fit), "fp32", "bf16", "int8", "int4", or "stored" (4-bit GGUF tensors keep their codes, others
            become int8).
        max_model_len: prompt + output of one request, in tokens; None is what model and memory allow.
        max_num_seqs: requests that run at once; more wait.
        kv_cache_dtype: "auto" (fp16; fp32 beside fp32 weights), "fp32", "fp16", or "int8" (half of fp16).
        kv_cache_memory: bytes for the KV cache; None is up to 60 % of what is free.
        num_threads: None is one per core this process may use, within its container's share.
        enable_prefix_caching: keep what was computed for a prompt and reuse it for prompts that begin alike.
        speculation: guess repeated text ahead; same answers, fewer steps.
        progress: called with (stage, done, total) while downloading and loading.

    The first load of a large model keeps its int8, int4 or stored weights packed on disk; the next one only maps a file
    (see `packed_cache`; GLM4_PACKED_CACHE_GB=0 turns it off). `checkpoint` is then that packed copy.

    Raises:
        Glm4Error: the model cannot be found, fetched, read, or does not fit; see `errors`.
    """

    def __init__(
        self,
        model: str = "starter",
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 512,
        kv_cache_dtype: str = "auto",
        kv_cache_memory: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool = True,
        speculation: bool = True,
        progress: Progress | None = None,
    ) -> None:
        options = LocalOptions(
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_memory=kv_cache_memory,
            num_threads=num_threads,
            enable_prefix_caching=enable_prefix_caching,
            speculation=speculation,
        )
        path, variant = resolve(model, progress=progress), get_variant(model)
        cache = PackedCache(path, get_kernels(options.kernels))
        cached = cache.find(dtype, variant)
        if cached is not None:
            try:
                self._load(cached, options, progress)
                return
            except (CheckpointError, TokenizerError):  # damaged on disk: make it again from the original
                discard(cached.path)
        checkpoint = open_checkpoint(path, variant=variant)
        backend = self._load(checkpoint, options, progress)
        precision = str(backend.info.details["dtype"])
        self._kept: BackgroundWrite | None = cache.keep(checkpoint, self.text.tokenizer, backend.model, precision)

    def _load(self, checkpoint: Checkpoint, options: LocalOptions, progress: Progress | None) -> LocalBackend:
        try:
            text = Processor.load(checkpoint)
            banned = text.tokenizer.unnamed_ids(checkpoint.config.vocab_size)
            backend = LocalBackend.load(checkpoint, options, banned, progress)
        except BaseException:
            checkpoint.close()
            raise
        self._start(backend, text, checkpoint)
        return backend

    @classmethod
    def from_backend(cls, backend: Backend, text: Processor) -> LLM:
        """Put a text side in front of any backend."""
        self = cls.__new__(cls)
        self._start(backend, text, None)
        return self

    def _start(self, backend: Backend, text: Processor, checkpoint: Checkpoint | None) -> None:
        self.backend = backend
        self.text = text
        self.checkpoint = checkpoint
        self._preparer = InputProcessor(text, backend.info.max_model_len, backend.info.vocab_size)
        self._kept = None
        self._running: dict[str, RequestState] = {}
        self._owners: dict[str, str] = {}
        # Chunks of requests that a stream iterator waits for; all others are returned by `step`.
        self._streams: dict[str, deque[StreamChunk]] = {}
        self._unclaimed: list[StreamChunk] = []
        self._counter = 0

    @property
    def info(self) -> BackendInfo:
        """Limits and precision of the backend."""
        return self.backend.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.text.tokenizer

    @property
    def dialect(self) -> Dialect:
        """The checkpoint's chat dialect."""
        return self.text.dialect

    def default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's authors recommend (generation_config.json and our table of variants)."""
        return self.text.defaults

    # Requests

    def prepare_chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        adapter: str | None = None,
    ) -> PreparedRequest:
        """Everything about a conversation that can be done before the engine sees it. Thread-safe; see `add`.

        Args:
            messages: dictionaries in OpenAI's form, or `Message`.
            params: None takes `default_sampling_params()`. With `structured_outputs` the answer has that form; if tools
                are offered, the model may call them instead (`tool_choice="none"` leaves only the answer).
            tools: tools in OpenAI's form, or GLM-4's built-in types.
            tool_choice: "auto" (None is the same); "none": the tools are kept out of the prompt, and nothing is read as
                a call; "required": the model must call; {"type": "function", "function": {"name": …}}: this one, once.
                A grammar enforces the last two, so that arguments fit their schema (unless `max_tokens` cuts them off).
            parallel_tool_calls: False ends the answer where a second call begins.
            add_generation_prompt: end the prompt with the beginning of the model's turn.
            template_kwargs: further variables for the chat template.

        Raises:
            InvalidRequestError, PromptTooLongError, TemplateError: it can never run.
        """
        return self._preparer.chat(
            messages,
            params,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
            adapter=adapter,
        )

    def prepare_prompt(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> PreparedRequest:
        """The same for a raw prompt: text (encoded with the model's usual prefix) or ids as they are. Thread-safe."""
        return self._preparer.prompt(prompt, params, adapter=adapter)

    def prepare_embedding(self, prompt: Prompt, *, adapter: str | None = None) -> PreparedRequest:
        """The same for a text to be embedded; its `RequestOutput` has the vector. Thread-safe."""
        return self._preparer.embedding(prompt, adapter=adapter)

    def add(self, request_id: str, prepared: PreparedRequest) -> None:
        """Queue a prepared request. Cheap; like `step`, only for the thread that owns this object.

        Raises:
            InvalidRequestError: the id is in use, a token id is outside the vocabulary, or there is no such adapter;
                nothing was queued.
        """
        if request_id in self._running:
            raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
        params, ids = prepared.params, prepared.prompt_ids
        running = RequestState(request_id, prepared.prompt, ids)
        running.metrics.num_prompt_tokens = len(ids)
        for index in range(params.n):
            backend_id = f"{request_id}#{index}"
            try:
                self.backend.add_request(prepared.sample(backend_id, self.text.stop_ids, index))
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

    def add_chat(
        self, request_id: str, messages: Conversation, params: SamplingParams | None = None, **options: Any
    ) -> None:
        """Queue a conversation to be answered: `prepare_chat` (same options and errors) and `add` together."""
        self.add(request_id, self.prepare_chat(messages, params, **options))

    def add_prompt(self, request_id: str, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> None:
        """Queue a raw prompt to be continued: `prepare_prompt` and `add` together."""
        self.add(request_id, self.prepare_prompt(prompt, params, **options))

    def abort(self, request_id: str) -> None:
        """Stop a request at once and free what it holds; no further chunk follows. Unknown ids are ignored."""
        running = self._running.pop(request_id, None)
        if running is not None:
            for backend_id in running.samples:
                self.backend.abort(backend_id)
                self._owners.pop(backend_id, None)
        self._streams.pop(request_id, None)
        self._unclaimed = [chunk for chunk in self._unclaimed if chunk.request_id != request_id]

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do or to return."""
        return bool(self._running) or bool(self._unclaimed)

    def step(self) -> list[StreamChunk]:
        """Advance everything by one step; returns the chunks of all requests that no stream iterator owns."""
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
            if running.finished:
                del self._running[request_id]
                for backend_id in running.samples:
                    del self._owners[backend_id]
            if chunk is not None:
                self._streams.get(request_id, self._unclaimed).append(chunk)

    # LoRA adapters, and what is going on: from any thread

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter in PEFT's format from a folder, for requests to name (`adapter=`).

        Raises:
            InvalidRequestError: the name is taken, or there are too many adapters.
            CheckpointError, OutOfMemoryError: it cannot be used with this model, or does not fit.
        """
        return self.backend.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse requests that name an adapter from now on; those queued or running finish.

        Raises:
            InvalidRequestError: there is no such adapter.
        """
        self.backend.unload_adapter(name)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name."""
        return self.backend.adapters()

    def stats(self) -> EngineStats:
        """Counts for a metrics page."""
        return self.backend.stats()

    # Whole answers and streams

    @overload
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | None = ...,
        *,
        tools: Tools | None = ...,
        tool_choice: str | Mapping[str, Any] | None = ...,
        parallel_tool_calls: bool = ...,
        stream: Literal[False] = ...,
        add_generation_prompt: bool = ...,
        template_kwargs: Mapping[str, Any] | None = ...,
        adapter: str | None = ...,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | None = ...,
        *,
        tools: Tools | None = ...,
        tool_choice: str | Mapping[str, Any] | None = ...,
        parallel_tool_calls: bool = ...,
        stream: Literal[True],
        add_generation_prompt: bool = ...,
        template_kwargs: Mapping[str, Any] | None = ...,
        adapter: str | None = ...,
    ) -> Iterator[StreamChunk]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        stream: bool = False,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        adapter: str | None = None,
    ) -> list[RequestOutput] | Iterator[StreamChunk]:
        """Answer one conversation or several at once.

        Args:
            messages: a list of messages (dictionaries in OpenAI's form, or `Message`), or a list of such lists.
            sampling_params: None takes `default_sampling_params()`.
            tools, tool_choice, parallel_tool_calls: see `prepare_chat`.
            stream: return an iterator of chunks instead of finished answers; closing it aborts what still runs.
            adapter: name of a loaded LoRA adapter to answer with.

        Returns:
            One `RequestOutput` per conversation, in order; or the iterator.
        """
        conversations = messages if _is_batch(messages) else [messages]
        adders = [
            partial(
                self.add_chat,
                messages=cast("Conversation", conversation),
                params=sampling_params,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                add_generation_prompt=add_generation_prompt,
                template_kwargs=template_kwargs,
                adapter=adapter,
            )
            for conversation in conversations
        ]
        return self._run(adders, stream)

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | None = ...,
        *,
        stream: Literal[False] = ...,
        adapter: str | None = ...,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | None = ...,
        *,
        stream: Literal[True],
        adapter: str | None = ...,
    ) -> Iterator[StreamChunk]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | None = None,
        *,
        stream: bool = False,
        adapter: str | None = None,
    ) -> list[RequestOutput] | Iterator[StreamChunk]:
        """Continue one raw prompt or several at once (text or token ids); see `chat` for the rest."""
        adders = [
            partial(self.add_prompt, prompt=prompt, params=sampling_params, adapter=adapter)
            for prompt in _prompts(prompts)
        ]
        return self._run(adders, stream)

    def embed(self, prompts: Prompt | Sequence[Prompt], *, adapter: str | None = None) -> list[EmbeddingOutput]:
        """Embed one text or several at once (text or token ids); see `EmbeddingOutput` for what the vectors are.

        Raises:
            PromptTooLongError: a text is longer than the context.
            Glm4Error: a text cannot be embedded.
        """

        def add(request_id: str, prompt: Prompt) -> None:
            self.add(request_id, self.prepare_embedding(prompt, adapter=adapter))

        outputs = self._run([partial(add, prompt=prompt) for prompt in _prompts(prompts)], stream=False)
        return [output.as_embedding() for output in cast("list[RequestOutput]", outputs)]

    def _run(
        self, adders: Sequence[Callable[[str], None]], stream: bool
    ) -> list[RequestOutput] | Iterator[StreamChunk]:
        request_ids: list[str] = []
        try:
            for add in adders:
                self._counter += 1
                request_id = f"llm-{self._counter}"
                add(request_id)
                self._streams[request_id] = deque()
                request_ids.append(request_id)
        except BaseException:
            # One bad prompt refuses the call; the others must not keep running behind it.
            for request_id in request_ids:
                self.abort(request_id)
            raise
        chunks = self._chunks(request_ids)
        # Run up to the first (empty) yield: only a started generator aborts its requests when it is dropped unused.
        next(chunks)
        if stream:
            return chunks
        outputs = {chunk.request_id: chunk.output for chunk in chunks if chunk.output is not None}
        return [outputs[request_id] for request_id in request_ids]

    def _chunks(self, request_ids: list[str]) -> Iterator[StreamChunk]:
        try:
            yield StreamChunk("", 0)
            while any(request_id in self._running for request_id in request_ids):
                self._advance()
                yield from self._drain(request_ids)
            yield from self._drain(request_ids)
        finally:
            for request_id in request_ids:
                self.abort(request_id)

    def _drain(self, request_ids: list[str]) -> Iterator[StreamChunk]:
        for request_id in request_ids:
            queue = self._streams.get(request_id)
            while queue:
                yield queue.popleft()

    def close(self) -> None:
        """Abort everything and free the model's memory. Waits for the packed cache, should it still be written."""
        for request_id in list(self._running):
            self.abort(request_id)
        self.backend.close()
        if self._kept is not None:
            self._kept.finish()
        if self.checkpoint is not None:
            self.checkpoint.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return cast("list[Prompt]", [prompts] if single else list(prompts))


def _is_batch(messages: Conversation | Sequence[Conversation]) -> bool:
    return bool(messages) and not isinstance(messages[0], (Message, Mapping))
