"""`LLM`: load a model and talk to it. Callers see messages and text, backends see token ids.

The facade is synchronous: `step()` advances every running request by one step of the backend. `run_steps` is the one
loop around it; whole answers, streams, batches and the command line iterate over it. `async_llm.AsyncLLM` runs the
same loop on a thread.

Any number of threads may use one `LLM`. They take turns at stepping: a step advances the requests of all of them and
leaves each its chunks, so what they ask at the same time is one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, count
from typing import TYPE_CHECKING

from glm4.backends.base import Backend, BackendInfo
from glm4.chat.chat_request import ChatOptions, ChatRequest, Conversation
from glm4.chat.dialects.table import Dialect
from glm4.engine.protocol import AdapterInfo, EngineStats
from glm4.errors import Glm4Error, InvalidRequestError, ModelClosedError, request_error
from glm4.hub.store import Progress
from glm4.open_model import ModelOptions, OpenModel, open_model
from glm4.outputs import EmbeddingOutput, RequestMetrics, RequestOutput, StreamChunk
from glm4.prompt import Prompt
from glm4.requests.input_processor import InputProcessor, PreparedRequest, PromptOptions
from glm4.requests.local_images import with_local_images
from glm4.requests.processor import Processor
from glm4.requests.prompt_forms import PromptLike, read_conversations, read_prompts
from glm4.requests.running_requests import RunningRequests
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
        options: how to run it: attributes of `backends.local.LocalOptions` or `backends.remote.RemoteOptions`; for
            models that see, those of `requests.image_inputs.ImageOptions`, too.

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
        self._inputs: InputProcessor | None = InputProcessor(
            opened.processor, opened.backend.info, opened.backend.adapters
        )
        self._requests = RunningRequests(opened.backend, opened.processor.stop_ids)
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

    def get_default_sampling_params(self) -> SamplingParams:
        """`default_sampling_params`, under vLLM's name."""
        return self.processor.defaults

    def get_tokenizer(self) -> Tokenizer:
        """`tokenizer`, under vLLM's name."""
        return self.processor.tokenizer

    # Requests

    def prepare(self, request: ChatRequest) -> PreparedRequest:
        """Do all the work on a conversation that does not need the engine. Thread-safe; see `add`.

        Raises:
            InvalidRequestError, PromptTooLongError, TemplateError: the request can never run.
            BusyError: too many pictures are being decoded.
        """
        return self._open_inputs().chat(request)

    def fetched(self, request: ChatRequest) -> ChatRequest:
        """The request with pictures in place of their addresses, which `prepare` would fetch. Thread-safe; may wait.

        Raises:
            InvalidRequestError: the request can never run, or an address is refused or leads to no picture.
        """
        return self._open_inputs().fetched(request)

    def prepare_text(self, request: ChatRequest) -> PreparedRequest:
        """`prepare` without its waiting, `fetched` before it and `decode_pictures` after it. Thread-safe.

        A request with pictures cannot be added yet, but its prompt has their rows.
        """
        return self._open_inputs().encoded(request)

    def decode_pictures(self, prepared: PreparedRequest) -> PreparedRequest:
        """What `prepare_text` or `prepare_text_prompt` returned, to be added. Thread-safe; may wait for a process.

        Raises:
            InvalidRequestError: a picture is damaged, too large or not a picture.
            BusyError: too many are being decoded.
        """
        return self._open_inputs().decoded(prepared)

    def render(self, request: ChatRequest) -> Prompt:
        """The prompt of a conversation, which may exceed the context. Thread-safe; see `prepare` for the errors.

        Pictures have their rows, but are not fetched or decoded: such a prompt can be counted, and not run.
        """
        return self._open_inputs().conversation(request)[0]

    def prepare_chat(
        self, messages: Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> PreparedRequest:
        """`prepare` for a plain list of messages; options are the attributes of `ChatRequest`.

        Messages may have pictures as Python programs have them, paths among them; see `chat`.
        """
        return self.prepare(ChatRequest.of(with_local_images(messages), params, **options))

    def prepare_prompt(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> PreparedRequest:
        """`prepare` for a raw prompt: text (encoded with the model's usual prefix), or ids; see `PromptLike`."""
        inputs = self._open_inputs()
        return inputs.decoded(inputs.prompt(prompt, params, adapter=adapter, **options))

    def prepare_text_prompt(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> PreparedRequest:
        """`prepare_prompt` but for `decode_pictures`."""
        return self._open_inputs().prompt(prompt, params, adapter=adapter, **options)

    def prepare_embedding(self, prompt: PromptLike, *, adapter: str | None = None) -> PreparedRequest:
        """`prepare` for a text to embed; its `RequestOutput` has the vector. Thread-safe."""
        return self._open_inputs().embedding(prompt, adapter=adapter)

    def _open_inputs(self) -> InputProcessor:
        if self._inputs is None:
            raise ModelClosedError
        return self._inputs

    def add(self, request_id: str, prepared: PreparedRequest) -> None:
        """Queue a prepared request; waits for the running step, if another thread is in one.

        Raises:
            InvalidRequestError: the id is in use, a token id is outside the vocabulary, or there is no such adapter;
                nothing is queued.
            ModelClosedError: after `close`.
        """
        self._requests.add(request_id, prepared)

    def abort(self, request_id: str) -> None:
        """Stop a request and free its resources; no more chunks follow. Unknown ids are ignored.

        Does not wait: if another thread is in a step, the request stops at its end.
        """
        self._requests.abort(request_id)

    def wake(self) -> None:
        """Make the running `step`, or the next one, return without waiting."""
        self.backend.wake()

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do or to return."""
        return self._requests.unfinished

    def step(self) -> list[StreamChunk]:
        """Advance everything by one step; returns the chunks of requests that `run_steps` does not own."""
        return self._requests.step()

    # Adapters and statistics: callable from any thread

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load an adapter in PEFT format, LoRA or a prefix, from a folder; requests select it by name (`adapter=`).

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

    def context(self, adapter: str | None = None) -> int:
        """Tokens that a prompt and its answer may have together: less under an adapter with virtual tokens."""
        return self._open_inputs().context(adapter)

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
            ModelClosedError: the model was closed, perhaps meanwhile and by another thread.
        """
        self._open_inputs()
        pending = iter(requests)
        capacity = in_flight or 2 * self.info.max_num_seqs
        samples: dict[str, int] = {}
        arrived: deque[StreamChunk] = deque()
        try:
            while True:
                while sum(samples.values()) < capacity and (item := next(pending, None)) is not None:
                    request_id, request = item
                    try:
                        prepared = self.prepare(request) if isinstance(request, ChatRequest) else request
                        self._requests.add(request_id, prepared, arrived)
                    except Glm4Error:
                        raise
                    except Exception as error:  # a bug that one request runs into does not end the others
                        arrived.append(_failed(request_id, request_error(error)))
                    else:
                        samples[request_id] = prepared.params.n
                if not samples and not arrived:
                    return
                chunks, unfinished = self._requests.step_for(arrived, samples)
                samples = {name: samples[name] for name in unfinished}
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
        *,
        use_tqdm: object = False,
        lora_request: None = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answer one or more conversations.

        Args:
            messages: a list of messages (dictionaries in OpenAI's form, or `Message`), one message, or a list of lists.
                Models that see take `{"type": "image", "image": …}` as a part: a path, bytes, a URL, a NumPy array or
                an image of Pillow; see `requests.local_images`.
            sampling_params: one for all, or one per conversation; None means `default_sampling_params()`.
            use_tqdm: accepted for programs written for vLLM; there is no progress bar.
            lora_request: must be None: `load_adapter` and `adapter` take its place.
            options: tools, tool_choice, parallel_tool_calls, add_generation_prompt, continue_final_message,
                template_kwargs, adapter: see `ChatRequest`.

        Returns:
            One `RequestOutput` per conversation, in order.

        Raises:
            Glm4Error: every request failed. If only some failed, those outputs have an `error`.
        """
        _check_no_lora_request(lora_request)
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
        use_tqdm: object = False,
        lora_request: None = None,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[RequestOutput]:
        """Continue one or more raw prompts; see `PromptLike`, `PromptOptions`, and `chat` for the rest."""
        _check_no_lora_request(lora_request)
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
        """Embed one or more texts (in any form of `PromptLike`); see `EmbeddingOutput` for what the vectors are.

        Raises:
            PromptTooLongError: a text is longer than the context.
            Glm4Error: a text cannot be embedded.
        """
        prepared = [self.prepare_embedding(prompt, adapter=adapter) for prompt in read_prompts(prompts)]
        return [output.as_embedding() for output in self._answers(prepared)]

    def _prepared_chats(
        self, messages: Conversation | Sequence[Conversation], sampling_params: Params, options: ChatOptions
    ) -> list[PreparedRequest]:
        conversations = read_conversations(messages)
        pairs = zip(conversations, _each(sampling_params, len(conversations)), strict=True)
        return [self.prepare_chat(conversation, params, **options) for conversation, params in pairs]

    def _prepared_prompts(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Params,
        adapter: str | None,
        options: PromptOptions,
    ) -> list[PreparedRequest]:
        listed = read_prompts(prompts)
        pairs = zip(listed, _each(sampling_params, len(listed)), strict=True)
        return [self.prepare_prompt(prompt, params, adapter=adapter, **options) for prompt, params in pairs]

    def _answers(self, prepared: Sequence[PreparedRequest]) -> list[RequestOutput]:
        """All answers in order. All are queued first, so that one bad request fails the call before any runs."""
        named = self._named(prepared)
        found = {output.request_id: output for output in self.run(named, in_flight=_samples(prepared))}
        outputs = [found.get(request_id) or _aborted(request_id) for request_id, _ in named]
        _raise_if_all_failed([output.error for output in outputs])
        return outputs

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
        """End everything that runs and give the memory back: weights, KV cache and threads. Idempotent.

        Streams that are open end with ModelClosedError, and so does every later request. From any thread; waits for the
        running step, and for the packed cache if it is still being written.
        """
        inputs, self._inputs = self._inputs, None
        self._requests.close()
        if inputs is not None:
            inputs.close()
        self._opened.close()

    def __enter__(self) -> LLM:
        self._open_inputs()
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
    listed = list(params) if isinstance(params, Sequence) else [params]
    for one in listed:
        if one is not None and not isinstance(one, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params is a SamplingParams or a list of them, not {type(one).__name__}",
                param="sampling_params",
            )
    if len(listed) != count:
        raise InvalidRequestError(
            f"{count} prompts, but {len(listed)} sampling_params; give one for all, or one per prompt",
            param="sampling_params",
        )
    return listed


def _samples(prepared: Sequence[PreparedRequest]) -> int:
    return sum(request.params.n for request in prepared)


def _check_no_lora_request(lora_request: object) -> None:
    if lora_request is not None:
        raise InvalidRequestError(
            "lora_request is not supported: load the adapter with llm.load_adapter(name, path), then pass adapter=name",
            param="lora_request",
        )


def _failed(request_id: str, error: Glm4Error) -> StreamChunk:
    """The only chunk of a request that failed before it ran."""
    output = RequestOutput(request_id, None, [], [], None, RequestMetrics(), error=error)
    return StreamChunk(request_id, 0, finish_reason="error", output=output)


def _aborted(request_id: str) -> RequestOutput:
    output = _failed(request_id, Glm4Error("the request was aborted")).output
    assert output is not None  # noqa: S101 (for the type checker)
    return output
