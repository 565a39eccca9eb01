"""`PreparedRequest`: a request up to the point where the engine takes it. Made on any thread.

Rendering, tokenizing and compiling a grammar take milliseconds to seconds; none of it needs the engine, so none of it
may hold up the requests that run there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from glm4.chat.base import offered_tools
from glm4.chat.messages import Message, as_messages
from glm4.errors import PromptTooLongError
from glm4.generation import GenerationRequest
from glm4.output_processor import Detokenizer, EventParser, PlainParser
from glm4.sampling_params import SamplingParams
from glm4.text_side import TextSide

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
    """

    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    decoder: Callable[[], tuple[Detokenizer, EventParser]]
    adapter: str | None = None
    pooling: Literal["mean"] | None = None

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
        )


def prepare_chat(
    text: TextSide,
    max_model_len: int,
    messages: Conversation,
    params: SamplingParams | None = None,
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
    adapter: str | None = None,
) -> PreparedRequest:
    """Render and tokenize a conversation; see `LLM.prepare_chat`."""
    turns, params = as_messages(messages), params or text.defaults
    ids = text.render(
        turns,
        tools or (),
        add_generation_prompt=add_generation_prompt,
        template_kwargs=template_kwargs,
    )
    check_length(ids, max_model_len, "messages")
    offered, skip = offered_tools(turns, tools or ()), params.skip_special_tokens

    def decoder() -> tuple[Detokenizer, EventParser]:
        detokenizer = text.dialect.detokenizer(text.tokenizer, skip_special_tokens=skip)
        return detokenizer, text.dialect.parser(offered, text.tokenizer)

    return PreparedRequest(None, ids, params, decoder, adapter)


def prepare_prompt(
    text: TextSide,
    max_model_len: int,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    adapter: str | None = None,
) -> PreparedRequest:
    """Tokenize a raw prompt; see `LLM.prepare_prompt`."""
    params = params or text.defaults
    ids = text.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
    check_length(ids, max_model_len, "prompt")
    skip = params.skip_special_tokens

    def decoder() -> tuple[Detokenizer, EventParser]:
        return text.tokenizer.detokenizer(skip_special_tokens=skip), PlainParser()

    return PreparedRequest(prompt if isinstance(prompt, str) else None, ids, params, decoder, adapter)


def prepare_embedding(
    text: TextSide, max_model_len: int, prompt: Prompt, *, adapter: str | None = None
) -> PreparedRequest:
    """Tokenize a text to be embedded; see `LLM.prepare_embedding`."""
    prepared = prepare_prompt(text, max_model_len + 1, prompt, SamplingParams(), adapter=adapter)  # no answer follows
    return replace(prepared, pooling="mean")


def check_length(ids: Sequence[int], max_model_len: int, param: str) -> None:
    """Refuse a prompt that leaves no room for one new token.

    Raises:
        PromptTooLongError: with `.param` naming the field the prompt came from.
    """
    if len(ids) + 1 > max_model_len:
        raise PromptTooLongError(
            f"the prompt has {len(ids)} tokens, but the context holds {max_model_len} (prompt and answer"
            " together); shorten the prompt, or load the model with a larger max_model_len (`--context`)",
            param=param,
        )
