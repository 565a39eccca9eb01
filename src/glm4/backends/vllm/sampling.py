"""A request's sampling options as vLLM's, and what its worker must know (`logits.py`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glm4.backends.base import sample_seed
from glm4.engine.protocol import GenerationRequest
from glm4.errors import InvalidRequestError
from glm4.grammars.matcher import Grammar

if TYPE_CHECKING:
    from vllm import SamplingParams

ARGUMENT = "glm4"
"""The key of what is ours in vLLM's `extra_args`."""

RANKED_UNNAMED = 20
"""So many more of the most likely tokens are asked for, because ids without a token, which are left out, may be among
them."""

_MOST_TEMPERATURE = 2.0  # of vLLM
_SMALLEST_TOP_P = 1e-9  # vLLM takes no 0; this, too, keeps only the most likely token


@dataclass(frozen=True)
class RowRules:
    """What the worker enforces for one request.

    Attributes:
        grammar, end_id: a grammar's description and the id that it calls the end of a text; empty, -1 without one.
        end_ids: ids that end the answer, wherever a grammar's text is complete.
        all_stop_ids: ids that may not come before `min_tokens`: with `ignore_eos`, the model's stop ids as well.
        scale: logits are divided by this before vLLM's own temperature.
    """

    grammar: str = ""
    end_id: int = -1
    end_ids: tuple[int, ...] = ()
    all_stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Signals:
    """Ids without a token with which the worker ends a text that follows a grammar. They are not part of the text.

    Attributes:
        complete: nothing may follow.
        stuck: the grammar cannot be followed any further.
    """

    complete: int
    stuck: int


def end_ids(request: GenerationRequest) -> frozenset[int]:
    """The ids that end an answer."""
    own = frozenset[int]() if request.params.ignore_eos else request.stop_ids
    return own | frozenset(request.params.stop_token_ids)


def row_rules(request: GenerationRequest) -> RowRules | None:
    """What the worker must enforce beyond the ban of unnamed ids; None if there is nothing.

    Raises:
        InvalidRequestError: its grammar exists only in this process.
    """
    grammar, params = request.constraint, request.params
    if grammar is None and not params.min_tokens and params.temperature <= _MOST_TEMPERATURE:
        return None
    if grammar is not None and not isinstance(grammar, Grammar):
        raise InvalidRequestError("the vllm backend follows grammars of StructuredOutputs only", param="constraint")
    ends = end_ids(request)
    return RowRules(
        grammar.text if grammar is not None else "",
        grammar.end_id if grammar is not None else -1,
        tuple(sorted(ends if grammar is None else ends - (grammar.own_ends - set(params.stop_token_ids)))),
        tuple(sorted(ends | request.stop_ids)),
        params.min_tokens,
        max(1.0, params.temperature / _MOST_TEMPERATURE),
    )


def vllm_params(request: GenerationRequest, signals: Signals | None) -> SamplingParams:
    """The options of a request in vLLM's form; every id is known to be in the vocabulary.

    Args:
        signals: None if the vocabulary has no ids for them; then no request has a grammar.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params, rules = request.params, row_rules(request)
    stops, scale = set(end_ids(request)), 1.0 if rules is None else rules.scale
    if request.constraint is not None and signals is not None:
        stops |= {signals.complete, signals.stuck}
    return SamplingParams(
        temperature=0.0 if params.greedy else params.temperature / scale,
        top_p=max(params.top_p, _SMALLEST_TOP_P),
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        # vLLM subtracts these from the scaled logits.
        presence_penalty=params.presence_penalty / scale,
        frequency_penalty=params.frequency_penalty / scale,
        logit_bias=dict(params.logit_bias) if params.logit_bias else None,
        seed=None if params.seed is None else sample_seed(params.seed, request.sample_index),
        # Ours: the model's own stop ids would otherwise come from its files, whatever the request says.
        ignore_eos=True,
        stop_token_ids=sorted(stops),
        max_tokens=params.max_tokens,
        logprobs=None if params.logprobs is None else params.logprobs + RANKED_UNNAMED,
        prompt_logprobs=None if params.prompt_logprobs is None else params.prompt_logprobs + RANKED_UNNAMED,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=None if rules is None else {ARGUMENT: asdict(rules)},
    )


def read_rules(extra_args: Any) -> RowRules | None:
    """The rules as they arrive in the worker."""
    given: dict[str, Any] | None = (extra_args or {}).get(ARGUMENT)
    if given is None:
        return None
    ids = {name: tuple(given[name]) for name in ("end_ids", "all_stop_ids")}
    return RowRules(**{**given, **ids})
