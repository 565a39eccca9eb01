"""vLLM's outputs as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4.backends.vllm.adapters import Loaded
from glm4.backends.vllm.sampling import RANKED_UNNAMED, Signals, end_ids
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.logprobs import TokenLogprobs


@dataclass
class Running:
    """A request in the engine.

    Attributes:
        adapter: it uses this one until it ends.
        last: its latest token.
        begun: there was an output.
    """

    request: GenerationRequest
    adapter: Loaded | None = None
    last: int | None = None
    begun: bool = False

    def read(self, output: Any, signals: Signals | None, unnamed: frozenset[int]) -> GenerationOutput:
        """Our form of vLLM's RequestOutput, whose tokens are the new ones only.

        Args:
            unnamed: ids without a token, which are in no ranking.
        """
        request, new = self.request, output.outputs[0]
        tokens = list(new.token_ids)
        logprobs = _logprobs(tokens, new.logprobs, request.params.logprobs, unnamed)
        reason, stop = _ending(new.finish_reason, new.stop_reason, tokens)
        if request.constraint is not None and signals is not None and stop in (signals.complete, signals.stuck):
            reason = "stop" if stop == signals.complete else "length"
            tokens, logprobs, stop = tokens[:-1], logprobs[: len(tokens) - 1], None
            last = tokens[-1] if tokens else self.last
            # A stop id let through by `ignore_eos` still ends the grammar's text.
            if reason == "stop" and last in request.stop_ids and last not in end_ids(request):
                stop = last
        self.last = tokens[-1] if tokens else self.last
        scored, cached = None, 0
        if not self.begun:
            self.begun, cached = True, output.num_cached_tokens or 0
            if request.params.prompt_logprobs is not None:
                scored = _prompt_logprobs(request, output.prompt_logprobs, unnamed)
        return GenerationOutput(
            request.request_id,
            tuple(tokens),
            reason,
            stop,
            tuple(logprobs),
            prompt_logprobs=scored,
            num_cached_tokens=cached,
        )


def _ending(reason: str | None, stop_reason: object, tokens: Sequence[int]) -> tuple[str | None, int | None]:
    """The finish reason and the stop id."""
    if reason != "stop":
        return reason, None
    if isinstance(stop_reason, int):
        return reason, stop_reason
    return reason, tokens[-1] if tokens else None


def _logprobs(
    tokens: Sequence[int], found: Sequence[Mapping[int, Any]] | None, num_top: int | None, unnamed: frozenset[int]
) -> list[TokenLogprobs]:
    if num_top is None or found is None:
        return []
    return [_at(token, entry, num_top, unnamed) for token, entry in zip(tokens, found[-len(tokens) :], strict=True)]


def _prompt_logprobs(
    request: GenerationRequest, found: Sequence[Mapping[int, Any] | None] | None, unnamed: frozenset[int]
) -> tuple[TokenLogprobs | None, ...]:
    num_top, ids = request.params.prompt_logprobs or 0, request.prompt_ids
    entries = found or [None] * len(ids)
    scored = [_at(token, entry, num_top, unnamed) if entry else None for token, entry in zip(ids, entries, strict=True)]
    for span in request.prompt.spans:
        scored[span.start : span.end] = [None] * span.length
    return tuple(scored)


def _at(token: int, entry: Mapping[int, Any], num_top: int, unnamed: frozenset[int]) -> TokenLogprobs:
    """vLLM's entry of one position: id -> (logprob, rank), of the token itself and of the most likely ones."""
    own = entry[token]
    ranked = sorted((one.rank, other, one.logprob) for other, one in entry.items())
    named = [(other, logprob) for _, other, logprob in ranked if other not in unnamed]
    skipped = sum(rank < own.rank and other in unnamed for rank, other, _ in ranked)
    # Below those that are listed, an unknown number of the others is without a token.
    known = own.rank <= num_top + RANKED_UNNAMED or skipped == len(unnamed)
    return TokenLogprobs(token, own.logprob, own.rank - skipped if known else None, tuple(named[:num_top]))
