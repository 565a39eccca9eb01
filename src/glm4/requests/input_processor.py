"""`PreparedRequest`: a request ready for the engine. Can be built on any thread.

Rendering, tokenizing and compiling a grammar take milliseconds to seconds; none of it needs the engine, so none of it
may delay the requests that run there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

from glm4.backends.base import BackendInfo, Capability
from glm4.chat.call_grammar import callables
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.base import texts_of
from glm4.chat.parsers.base import PlainParser, StreamParser
from glm4.chat.parts import ImagePart
from glm4.chat.pictures import check_number, check_parts, images_of, picture_prompt
from glm4.engine.protocol import AdapterInfo, GenerationRequest, TokenConstraint
from glm4.errors import InvalidRequestError, PromptTooLongError, TemplateError
from glm4.prompt import Prompt
from glm4.requests.assistant_prefill import AssistantPrefill
from glm4.requests.declared_grammar import DeclaredGrammars
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.processor import Processor
from glm4.requests.prompt_forms import PromptLike, read_prompt
from glm4.requests.requirements import check_supported
from glm4.sampling_params import SamplingParams, StructuredOutputs
from glm4.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_T = TypeVar("_T")


class PromptOptions(TypedDict, total=False):
    """How a raw prompt becomes ids; names follow vLLM and llama.cpp.

    Attributes:
        add_special_tokens: begin with the model's prefix (`[gMASK]<sop>`) unless the prompt does. The default is True
            for text and False for ids.
        parse_special: read spellings of special tokens in text as these tokens. Only for text without user input:
            whoever wrote it can end turns and begin others.
    """

    add_special_tokens: bool | None
    parse_special: bool


Grammar = TokenConstraint | StructuredOutputs
"""Compiled, or as source text for a backend that compiles grammars itself."""


@dataclass(frozen=True)
class PreparedRequest:
    """The input of `LLM.add`.

    Attributes:
        prompt: the model's input.
        params: sampling options with the model's defaults filled in.
        decoder: creates a new detokenizer and parser for one sample.
        adapter: name of the adapter to use.
        pooling: "mean" for an embedding of the prompt instead of an answer.
        constraint: the grammar the answer must follow, in the form the backend takes.
        max_tool_calls: the answer ends where a call beyond this number begins.
        text: the raw prompt, if it was text.
        max_running: samples that may run at once; None does not limit them.
        cache_salt: keeps the cached prompt apart from those with another salt.
        num_added_ids: ids at the beginning of the prompt that the caller did not send: the model's prefix.
        images: pictures that are not in `prompt.pixels` yet; see `InputProcessor.decoded`.
    """

    prompt: Prompt
    params: SamplingParams
    decoder: Callable[[], tuple[Detokenizer, StreamParser]]
    adapter: str | None = None
    pooling: Literal["mean"] | None = None
    constraint: Grammar | None = None
    max_tool_calls: int | None = None
    text: str | None = None
    max_running: int | None = None
    cache_salt: str = ""
    num_added_ids: int = 0
    images: tuple[ImagePart, ...] = ()

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The prompt's token ids, without its media spans."""
        return self.prompt.ids

    def sample(self, backend_id: str, stop_ids: frozenset[int], index: int) -> GenerationRequest:
        """The backend's request for one of the samples."""
        grammar = self.constraint
        compiled, declared = (None, grammar) if isinstance(grammar, StructuredOutputs) else (grammar, None)
        return GenerationRequest(
            backend_id,
            self.prompt,
            self.params,
            stop_ids,
            index,
            adapter=self.adapter,
            pooling=self.pooling,
            constraint=compiled,
            structured_outputs=declared,
            group=backend_id.rpartition("#")[0],
            max_running=self.max_running,
            cache_salt=self.cache_salt,
        )


class InputProcessor:
    """Builds prepared requests for one model. Thread-safe.

    Args:
        processor: the checkpoint's tokenizer, dialect, template and defaults.
        info: limits and capabilities of the backend that will run the requests.
        adapters: those that it has now.
    """

    def __init__(
        self, processor: Processor, info: BackendInfo, adapters: Callable[[], Sequence[AdapterInfo]] = tuple
    ) -> None:
        self._processor = processor
        self._info = info
        self._adapters = adapters
        self._max_model_len = info.max_model_len
        self._grammars: GrammarCompiler | DeclaredGrammars = (
            GrammarCompiler(processor.tokenizer, info.vocab_size, processor.dialect)
            if Capability.COMPILED_GRAMMARS in info.capabilities
            else DeclaredGrammars(processor.tokenizer, processor.dialect)
        )

    def close(self) -> None:
        """End what preparing requests has started."""
        if self._processor.images is not None:
            self._processor.images.close()
        if isinstance(self._grammars, GrammarCompiler):
            self._grammars.close()

    def context(self, adapter: str | None) -> int:
        """Tokens that a prompt and its answer may have together: virtual tokens of their adapter take a part."""
        if adapter is None:
            return self._max_model_len
        return self._max_model_len - sum(one.num_virtual_tokens for one in self._adapters() if one.name == adapter)

    def chat(self, request: ChatRequest) -> PreparedRequest:
        """Fetch the pictures of a conversation, render and tokenize it, and decode the pictures.

        Raises:
            InvalidRequestError, PromptTooLongError, TemplateError: the request can never run.
        """
        return self.decoded(self.encoded(self.fetched(request)))

    def fetched(self, request: ChatRequest) -> ChatRequest:
        """The request with pictures in place of their addresses; the same one if it has none.

        `chat` does it, too. A server does it first, elsewhere: it waits for other machines, for seconds per picture.

        Raises:
            InvalidRequestError, PromptTooLongError: as `chat`, before anything is fetched; or an address is refused.
        """
        images = self._processor.images
        if not self._checked_pictures(request) or images is None:
            return request
        self._fitting(partial(self._check_texts, request), "messages")
        return images.fetched(request)

    def decoded(self, prepared: PreparedRequest) -> PreparedRequest:
        """The same with the pixels of its pictures, which must have their bytes.

        Raises:
            InvalidRequestError, BusyError: see `ImageInputs.with_pixels`.
        """
        images = self._processor.images
        if images is None or not prepared.images:
            return prepared
        return replace(prepared, prompt=images.with_pixels(prepared.prompt, prepared.images), images=())

    def _checked_pictures(self, request: ChatRequest) -> tuple[ImagePart, ...]:
        """The pictures of a conversation, if the model and the backend can do what it asks for."""
        processor, params = self._processor, request.params or self._processor.defaults
        check_parts(request.messages, processor.dialect.media, processor.image)
        pictures = tuple(images_of(request.messages))
        media = pictures[0].where if pictures else None
        form = "tool_choice" if request.tool_choice.mode == "required" else _form_param(params)
        if form is None and request.free_but_for_calls:
            form = "constrain_calls"
        check_supported(self._info, params, media=media, adapter=request.adapter, grammar=form)
        return pictures

    def encoded(self, request: ChatRequest) -> PreparedRequest:
        """Render and tokenize a conversation. Its pictures are left to `decoded`; addresses can only be counted.

        Raises:
            InvalidRequestError, PromptTooLongError, TemplateError: as `chat`.
        """
        processor, offered = self._processor, request.offered_tools
        params = request.params or processor.defaults
        pictures = self._checked_pictures(request)
        prompt, prefill = self._fitting(partial(self.conversation, request), "messages")
        self._check_length(prompt, "messages", request.adapter)
        constraint = self._chat_constraint(request, params.structured_outputs)
        skip = params.skip_special_tokens

        def decoder() -> tuple[Detokenizer, StreamParser]:
            detokenizer = processor.dialect.detokenizer(processor.tokenizer, skip_special_tokens=skip)
            parser = processor.dialect.parser(offered, processor.tokenizer)
            return detokenizer, parser if prefill is None else prefill.parser(parser)

        return PreparedRequest(
            prompt,
            params,
            decoder,
            adapter=request.adapter,
            constraint=constraint,
            max_tool_calls=None if request.parallel_tool_calls else 1,
            images=pictures,
        )

    def conversation(self, request: ChatRequest) -> tuple[Prompt, AssistantPrefill | None]:
        """The prompt of a conversation, however long, and the beginning of the answer that it ends with.

        No picture is fetched or decoded for it.

        Raises:
            InvalidRequestError, TemplateError: as `chat`.
            PromptTooLongError: it is many times as long as the context, and was not counted.
        """
        self._check_texts(request)
        asked, prefill = AssistantPrefill.split(self._processor, request)
        prompt = self._processor.render(asked, most=self._max_model_len)
        return prompt if prefill is None else prefill.after(prompt), prefill

    def _check_texts(self, request: ChatRequest) -> None:
        """Before anything goes through the text. Even if a template left some of it out, it would be far too long."""
        image = self._processor.image
        rows = 0 if image is None else len(images_of(request.messages)) * image.num_rows
        self._processor.tokenizer.check_length(texts_of(request), self._max_model_len, rows)

    def prompt(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> PreparedRequest:
        """Tokenize a raw prompt, its pictures left to `decoded`; see `LLM.prepare_prompt`."""
        return self._raw(prompt, params or self._processor.defaults, adapter, None, **options)

    def _raw(
        self,
        prompt: PromptLike,
        params: SamplingParams,
        adapter: str | None,
        pooling: Literal["mean"] | None,
        **options: Unpack[PromptOptions],
    ) -> PreparedRequest:
        tokenizer, embedding = self._processor.tokenizer, pooling is not None
        source, given, pictures = read_prompt(prompt)
        form = _form_param(params)
        media = pictures[0].where if pictures else "prompt" if isinstance(given, Prompt) and given.spans else None
        if pictures:
            self._check_pictures(pictures)
        check_supported(self._info, params, media=media, adapter=adapter, embedding=embedding, grammar=form)
        num_added = 0
        if not isinstance(given, Prompt):
            written = source or "" if given is None else given
            encode = partial(_prompt_ids, written, tokenizer, most=self._max_model_len, **options)
            ids, num_added = self._fitting(encode, "prompt")
            given = Prompt(ids)
            if pictures:
                given, pictures = self._with_pictures(ids, pictures, adapter)
        self._check_length(given, "prompt", adapter, answer=not embedding)
        outputs, skip = params.structured_outputs, params.skip_special_tokens

        def decoder() -> tuple[Detokenizer, StreamParser]:
            return tokenizer.detokenizer(skip_special_tokens=skip), PlainParser()

        constraint = None if outputs is None else self._grammars.raw(outputs)
        return PreparedRequest(
            given, params, decoder, adapter, pooling, constraint, text=source, num_added_ids=num_added, images=pictures
        )

    def _check_pictures(self, pictures: Sequence[ImagePart]) -> None:
        """As `check_parts`, for those of a raw prompt."""
        image = self._processor.image
        if image is None:
            raise InvalidRequestError("this model takes text only; leave multi_modal_data out", param="prompt")
        for count, part in enumerate(pictures, 1):
            check_number(count, image, part.where)

    def _with_pictures(
        self, ids: list[int], pictures: Sequence[ImagePart], adapter: str | None
    ) -> tuple[Prompt, tuple[ImagePart, ...]]:
        """A raw prompt with pictures in the places that it has for them, and these with their bytes."""
        images, dialect = self._processor.images, self._processor.dialect
        assert images is not None  # noqa: S101 (checked before)
        marks = dialect.mark_ids(self._processor.tokenizer)
        try:
            prompt = picture_prompt(ids, marks, images.layout, pictures)
        except TemplateError:
            raise InvalidRequestError(
                f"the prompt needs {''.join(dialect.picture_marks)} for each of its pictures ({len(pictures)}); in text"
                " these are tokens only with parse_special=True",
                param="prompt",
            ) from None
        self._check_length(prompt, "prompt", adapter)
        found = tuple(images.fetch(part) for part in pictures)
        return picture_prompt(ids, marks, images.layout, found), found

    def embedding(self, prompt: PromptLike, *, adapter: str | None = None) -> PreparedRequest:
        """Tokenize a text to embed; see `LLM.prepare_embedding`."""
        return self.decoded(self._raw(prompt, SamplingParams(), adapter, "mean"))

    def _chat_constraint(self, request: ChatRequest, outputs: StructuredOutputs | None) -> Grammar | None:
        """A grammar if tools must be called, or calls or the answer have a required form; None if there is none."""
        choice, parallel = request.tool_choice, request.parallel_tool_calls
        free = outputs is None and request.free_but_for_calls
        if choice.mode != "required" and outputs is None and not free:
            return None
        begun = request.continue_final_message or not request.add_generation_prompt
        if outputs is not None and choice.mode != "required" and begun:
            # The prompt ends inside a turn, so the text that precedes an answer is already in it.
            return self._grammars.raw(outputs)
        offered = request.offered_tools
        builtin, attached = self._processor.dialect.builtin_tools, len(offered) - len(request.tools)
        tools = callables(offered, builtin, attached=attached)
        if free:
            return self._grammars.calls(tools)
        if choice.mode == "required":
            # The answer's format does not matter: there will be calls instead of an answer.
            return self._grammars.answer(None, choice.among(tools), parallel=parallel and choice.name is None)
        return self._grammars.answer(outputs, tools, parallel=parallel)

    def _fitting(self, encode: Callable[[], _T], param: str) -> _T:
        """What `encode` returns; a text refused before it was encoded gets the same error as other long ones."""
        try:
            return encode()
        except PromptTooLongError as error:
            raise self._too_long(f"at least {error.at_least}", param, at_least=error.at_least) from None

    def _check_length(self, prompt: Prompt, param: str, adapter: str | None, *, answer: bool = True) -> None:
        context = self.context(adapter)
        if len(prompt) + answer > context:
            taken = self._max_model_len - context
            beside = f" beside the {taken} virtual tokens of the adapter" if taken else ""
            together = " (prompt and answer together)" if answer else ""
            raise self._too_long(str(len(prompt)), param, beside + together, context)

    def _too_long(
        self, count: str, param: str, together: str = "", context: int | None = None, *, at_least: int | None = None
    ) -> PromptTooLongError:
        return PromptTooLongError(
            f"the prompt has {count} tokens, but the context holds {context or self._max_model_len}{together};"
            " shorten the prompt, or load the model with a larger max_model_len (`--context`)",
            param=param,
            at_least=at_least,
        )


def _prompt_ids(
    prompt: str | Sequence[int],
    tokenizer: Tokenizer,
    *,
    add_special_tokens: bool | None = None,
    parse_special: bool = False,
    most: int | None = None,
) -> tuple[list[int], int]:
    """Ids of a raw prompt, and how many of them are the model's prefix that it did not have."""
    prefix = tokenizer.prefix_ids
    if not isinstance(prompt, str):
        ids = list(prompt)
        added = bool(add_special_tokens) and tuple(ids[: len(prefix)]) != prefix
        return ([*prefix, *ids], len(prefix)) if added else (ids, 0)
    if add_special_tokens is False:
        return tokenizer.encode(prompt, allow_special=parse_special, most=most), 0
    ids = tokenizer.encode_prompt(prompt, allow_special=parse_special, most=most)
    return ids, 0 if tokenizer.has_prefix(prompt) else len(prefix)


def _form_param(params: SamplingParams) -> str | None:
    """The field that sets the answer's format, if any."""
    return None if params.structured_outputs is None else params.structured_outputs.param
