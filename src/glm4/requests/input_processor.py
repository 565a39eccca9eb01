"""`PreparedRequest`: a request up to the point where the engine takes it. Made on any thread.

Rendering, tokenizing and compiling a grammar take milliseconds to seconds; none of it needs the engine, so none of it
may hold up the requests that run there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from glm4.chat.call_grammar import callables
from glm4.chat.dialects.base import offered_tools
from glm4.chat.messages import Message, as_messages
from glm4.chat.tool_choice import ToolChoice
from glm4.engine.protocol import GenerationRequest, TokenConstraint
from glm4.errors import PromptTooLongError
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.output_processor import Detokenizer, EventParser, PlainParser
from glm4.requests.processor import Processor
from glm4.sampling_params import SamplingParams
from glm4.structured_outputs import StructuredOutputs

Conversation = Sequence[Message | Mapping[str, Any]]
Prompt = str | Sequence[int]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PreparedRequest:
    """What `LLM.add` needs.

    Attributes:
        prompt: the raw prompt, if it was text.
        prompt_ids: what the model reads.
        params: sampling options, the model's defaults filled in.
        decoder: makes a fresh detokenizer and parser for one sample.
        adapter: name of the LoRA adapter to use.
        pooling: "mean" for an embedding of the prompt instead of an answer.
        constraint: the grammar the answer must follow.
        max_tool_calls: the answer ends where one call more begins.
    """

    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    decoder: Callable[[], tuple[Detokenizer, EventParser]]
    adapter: str | None = None
    pooling: Literal["mean"] | None = None
    constraint: TokenConstraint | None = None
    max_tool_calls: int | None = None

    def sample(self, backend_id: str, stop_ids: frozenset[int], index: int) -> GenerationRequest:
        """What the backend gets for one of the samples."""
        return GenerationRequest(
            backend_id,
            self.prompt_ids,
            self.params,
            stop_ids,
            index,
            adapter=self.adapter,
            pooling=self.pooling,
            constraint=self.constraint,
        )


class InputProcessor:
    """Makes prepared requests for one model. Thread-safe.

    Args:
        text: the checkpoint's text side.
        max_model_len: what prompt and answer together may take, in tokens.
        vocab_size: rows of the model's vocabulary.
    """

    def __init__(self, text: Processor, max_model_len: int, vocab_size: int) -> None:
        self._text = text
        self._max_model_len = max_model_len
        self._grammars = GrammarCompiler(text.tokenizer, vocab_size, text.dialect)

    def chat(
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
        """Render and tokenize a conversation; see `LLM.prepare_chat`."""
        text, turns, tools = self._text, as_messages(messages), tools or ()
        params, choice = params or text.defaults, ToolChoice.read(tool_choice)
        if choice.mode == "none":
            turns, tools = [replace(turn, tools=()) for turn in turns], ()
        offered = offered_tools(turns, tools)
        ids = text.render(turns, tools, add_generation_prompt=add_generation_prompt, template_kwargs=template_kwargs)
        self._check_length(ids, "messages")
        if params.structured_outputs is not None and choice.mode != "required" and not add_generation_prompt:
            # The prompt ends inside a turn; what is in front of an answer was there long ago.
            constraint: TokenConstraint | None = self._grammars.raw(params.structured_outputs)
        else:
            constraint = self._chat_constraint(offered, params.structured_outputs, choice, parallel_tool_calls)
        skip = params.skip_special_tokens

        def decoder() -> tuple[Detokenizer, EventParser]:
            detokenizer = text.dialect.detokenizer(text.tokenizer, skip_special_tokens=skip)
            return detokenizer, text.dialect.parser(offered, text.tokenizer)

        return PreparedRequest(
            None,
            ids,
            params,
            decoder,
            adapter=adapter,
            constraint=constraint,
            max_tool_calls=None if parallel_tool_calls else 1,
        )

    def prompt(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> PreparedRequest:
        """Tokenize a raw prompt; see `LLM.prepare_prompt`."""
        return self._raw(prompt, params or self._text.defaults, adapter, None)

    def _raw(
        self, prompt: Prompt, params: SamplingParams, adapter: str | None, pooling: Literal["mean"] | None
    ) -> PreparedRequest:
        tokenizer = self._text.tokenizer
        ids = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        self._check_length(ids, "prompt", answer=pooling is None)
        outputs, skip = params.structured_outputs, params.skip_special_tokens

        def decoder() -> tuple[Detokenizer, EventParser]:
            return tokenizer.detokenizer(skip_special_tokens=skip), PlainParser()

        constraint = None if outputs is None else self._grammars.raw(outputs)
        source = prompt if isinstance(prompt, str) else None
        return PreparedRequest(source, ids, params, decoder, adapter, pooling, constraint)

    def embedding(self, prompt: Prompt, *, adapter: str | None = None) -> PreparedRequest:
        """Tokenize a text to be embedded; see `LLM.prepare_embedding`."""
        return self._raw(prompt, SamplingParams(), adapter, "mean")

    def _chat_constraint(
        self,
        offered: Sequence[Mapping[str, Any]],
        outputs: StructuredOutputs | None,
        choice: ToolChoice,
        parallel: bool,
    ) -> TokenConstraint | None:
        """A grammar where tools must be called or the answer has a form; None where the model is free."""
        if choice.mode != "required" and outputs is None:
            return None
        tools = callables(offered, self._text.dialect.builtin_tools)
        if choice.mode == "required":
            # What an answer would look like does not matter: there will be none.
            return self._grammars.answer(None, choice.among(tools), parallel=parallel and choice.name is None)
        return self._grammars.answer(outputs, tools, parallel=parallel)

    def _check_length(self, ids: Sequence[int], param: str, *, answer: bool = True) -> None:
        if len(ids) + answer > self._max_model_len:
            together = " (prompt and answer together)" if answer else ""
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, but the context holds {self._max_model_len}{together};"
                " shorten the prompt, or load the model with a larger max_model_len (`--context`)",
                param=param,
            )
