"""What crosses the seam between text and ids: requests, and the output of each step. Token ids only.

A leaf module, so that the engine below the seam and `llm` above it share the same types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from glm4.errors import Glm4Error, InvalidRequestError, PromptTooLongError
from glm4.logprobs import TokenLogprobs
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams, StructuredOutputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenMatcher(Protocol):
    """One sequence's position in its grammar. Used by one thread.

    Every method may raise GrammarError: the grammar cannot be followed any further.
    """

    def accept(self, token_ids: Sequence[int]) -> int:
        """Consume tokens; returns how many of them matched. The first that did not, and the rest, have no effect."""

    def forced(self) -> Sequence[int]:
        """The only tokens that can come next, in order, as far as that is certain; none is accepted yet."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: bool [vocab_size], which the caller may modify.

        An id that ends the text is True only where the grammar itself names it.
        """

    def is_complete(self) -> bool:
        """True if the text may end here."""

    def is_finished(self) -> bool:
        """True if it must end here, because nothing can follow."""


class TokenConstraint(Protocol):
    """A compiled grammar over token ids; any number of sequences may follow it, each with its own matcher."""

    @property
    def own_ends(self) -> frozenset[int]:
        """The model's stop ids that may come only where the grammar names them; the rest: where a text is complete."""

    def start(self) -> TokenMatcher:
        """A new matcher, at the start. Thread-safe."""


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to continue. `n > 1` is expanded above the seam: one request per sample.

    Attributes:
        request_id: unique among running requests.
        prompt: at least one id, each below the vocabulary size.
        params: sampling options; `stop` strings are text and are therefore handled above the seam.
        stop_ids: the model's own stop ids (dropped when `params.ignore_eos`), `params.stop_token_ids` not included.
        sample_index: which of the `n` samples this is; mixed into the seed so that samples differ.
        adapter: name of a loaded adapter, or None for the model itself.
        pooling: "mean" asks for an embedding of the prompt instead of tokens; `params` then has no effect.
        constraint: what the tokens must spell. A finished text ends with "stop", with or without a stop id; stop ids
            are allowed only where the text is complete (some of them only where the constraint names them). If it
            cannot be followed further, the text ends with "length".
        structured_outputs: the uncompiled form, for a backend that compiles it; at most one of the two is given.
        group: the request that this is a sample of.
        max_running: samples of the group that may run at once; None does not limit them.
        cache_salt: only prompts that were cached with the same salt are reused; "" is a salt as well.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    sample_index: int = 0
    adapter: str | None = None
    pooling: Literal["mean"] | None = None
    constraint: TokenConstraint | None = None
    structured_outputs: StructuredOutputs | None = None
    group: str = ""
    max_running: int | None = None
    cache_salt: str = ""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The prompt's ids."""
        return self.prompt.ids


def check_request(
    request: GenerationRequest, vocab_size: int, max_model_len: int, num_banned: int = 0, num_virtual: int = 0
) -> None:
    """Checks that every backend makes before it queues a request.

    Args:
        num_banned: rows of the vocabulary without a token.
        num_virtual: virtual tokens of the request's adapter.

    Raises:
        PromptTooLongError: no room for the prompt plus one new token.
        InvalidRequestError: an empty prompt, an id outside the vocabulary, or options that exclude each other.
    """
    ids, length = request.prompt_ids, len(request.prompt)
    if not length:
        raise InvalidRequestError("the prompt is empty: there is nothing to continue", param="prompt")
    if num_virtual + length + (request.pooling is None) > max_model_len:
        virtual = f" and the adapter {num_virtual}" if num_virtual else ""
        raise PromptTooLongError(
            f"the prompt has {length} tokens{virtual}; the context holds {max_model_len}, the answer included",
            param="prompt",
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InvalidRequestError(f"prompt ids must be between 0 and {vocab_size - 1}", param="prompt")
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(request.params, name) or ():
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(f"{name} names token {token}, outside the vocabulary", param=name)
    ends = request.stop_ids | set(request.params.stop_token_ids)
    if request.params.min_tokens and len(ends) + num_banned >= vocab_size:
        raise InvalidRequestError("stop_token_ids leaves no token for min_tokens", param="stop_token_ids")
    if request.pooling is not None:
        for name, value in (("prompt_logprobs", request.params.prompt_logprobs), ("grammar", request.constraint)):
            if value is not None:
                raise InvalidRequestError(f"an embedding has no {name}", param=name)


@dataclass(frozen=True)
class GenerationOutput:
    """The output of one step for one request.

    Attributes:
        request_id: the request this output belongs to.
        token_ids: new tokens, oldest first; a stop id that ended the sequence is included as the last one.
        finish_reason: None while running; "stop" (a stop id, or a constraint's end), "length" (max_tokens or context),
            "abort", "error".
        stop_token_id: the stop id that ended it, if one did.
        logprobs: one entry per new token, if requested.
        prompt_logprobs: set once, with the first output, if requested; entry 0 is None (nothing precedes it),
            and so are those of rows that stand for media.
        num_cached_tokens: prompt tokens that came from a cache.
        embedding: float32 [hidden_size] of length 1, with the only output of a request with pooling.
        error: why the request ended with "error"; an output with one has no tokens.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0
    embedding: NDArray[np.float32] | None = None
    error: Glm4Error | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, for a metrics page. Counts since the start unless noted otherwise.

    Attributes:
        num_running: requests that hold pages, now.
        num_waiting: requests in the queue, now; those whose pictures are being encoded are among them.
        kv_pages_used: pages of the KV cache that running requests hold, now; those kept only for reuse are free.
        kv_pages_total: total number of pages.
        prompt_score_nbytes: memory of the log-probabilities kept beside pages, now.
        prefix_cache_queries: prompt tokens looked up in the prefix cache.
        prefix_cache_hits: those of them that were found.
        num_preemptions: how often a request gave up its pages for an older one.
        num_drafted_tokens: draft tokens proposed.
        num_accepted_tokens: those of them that were accepted.
        running_adapters: names of the adapters that running requests use, now; sorted.
        waiting_adapters: those that only waiting requests use.
        pictures_encoded: pictures that went through the vision tower.
        picture_cache_hits: pictures of requests that did not have to, because what it made of them was still there.
        encoding: fraction of the picture in the tower that is done, now; None if there is none.
        kv_store_hits: prompt tokens whose keys and values were read from the store of pages.
        kv_store_pages_written: pages written there.
        kv_store_nbytes: bytes of all pages there, now, as far as this process knows.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    prompt_score_nbytes: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    pictures_encoded: int = 0
    picture_cache_hits: int = 0
    encoding: float | None = None
    kv_store_hits: int = 0
    kv_store_pages_written: int = 0
    kv_store_nbytes: int = 0


@dataclass(frozen=True)
class AdapterInfo:
    """A loaded adapter.

    Attributes:
        name: what requests call it.
        path: the folder it came from.
        rank: the largest one of a LoRA adapter; 0 for others.
        nbytes: in memory.
        kind: "lora" or "prefix".
        num_virtual_tokens: of a prefix; they take a part of the context. 0 for others.
    """

    name: str
    path: str
    rank: int
    nbytes: int
    kind: Literal["lora", "prefix"] = "lora"
    num_virtual_tokens: int = 0
