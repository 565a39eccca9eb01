"""Failures that tests inject where a request's own work is done: each place fails for the victim, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from glm4.engine import sequence
from glm4.engine.engine import Engine
from glm4.engine.pooling import MeanPool
from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.sampling import Sampler
from glm4.engine.sequence import Sequence
from glm4.engine.speculation import PromptLookup
from glm4.grammars import matcher as grammar_matcher
from glm4.model import transformer
from glm4.requests.output_processor import SampleProcessor
from glm4.tokenizer import Tokenizer

SEED = 666
"""The victim's."""
PROMPT = "VICTIM, or what the cat brought in"
"""The victim's; no other prompt has a capital letter."""


class BoomError(Exception):
    """What is injected."""


class PanicException(BaseException):
    """As libraries in Rust raise it: not an `Exception`."""


@dataclass(frozen=True)
class Fault:
    """A place that can fail.

    Attributes:
        install: makes it fail.
        params: sampling options of the victim, beyond its seed, which make it come through there.
        fields: the same in a body of /v1/completions.
        adapter: the victim uses the adapter "bad".
    """

    name: str
    install: Callable[[pytest.MonkeyPatch], None]
    params: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    adapter: bool = False


def _boom(*_: object, **__: object) -> Any:
    raise BoomError("boom")


def _panic(*_: object, **__: object) -> Any:
    raise PanicException("boom")


def _no_memory(*_: object, **__: object) -> Any:
    raise MemoryError


def _breaks(
    patch: pytest.MonkeyPatch,
    *,
    owner: Any,
    name: str,
    victim: Callable[..., bool] = lambda *_, **__: True,
    healthy: int = 0,
    failure: Callable[..., Any] = _boom,
) -> None:
    """Make a function fail for the victim, after some calls that work."""
    original = getattr(owner, name)
    calls = 0

    def function(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if victim(*args, **options):
            calls += 1
            if calls > healthy:
                return failure(*args, **options)
        return original(*args, **options)

    patch.setattr(owner, name, function)


def _breaks_part(patch: pytest.MonkeyPatch, *, part: str, method: str) -> None:
    """Make a part of the victim's output processor fail."""
    original = SampleProcessor.__init__

    def init(self: SampleProcessor, index: int, params: Any, *args: Any, **options: Any) -> None:
        original(self, index, params, *args, **options)
        if params.seed == SEED:
            setattr(getattr(self, part), method, _boom)

    patch.setattr(SampleProcessor, "__init__", init)


def _by_seed(one: Any, *_: object) -> bool:
    request = getattr(one, "request", one)
    return bool(request.params.seed == SEED)


def _by_ids(_: object, ids: Any, *__: object) -> bool:
    return ord("V") in ids[:8]


def _fault(name: str, owner: Any, function: str, **options: Any) -> Fault:
    given = {key: options.pop(key) for key in ("params", "fields", "adapter") if key in options}
    return Fault(name, partial(_breaks, owner=owner, name=function, **options), **given)


def _grammar(name: str, owner: Any, function: str, **options: Any) -> Fault:
    from glm4.sampling_params import StructuredOutputs

    regex = "(abcdefghij|[k-z]{30})[a-z]{40}"
    return _fault(
        name,
        owner,
        function,
        params={"structured_outputs": StructuredOutputs(regex=regex)},
        fields={"structured_outputs": {"regex": regex}},
        **options,
    )


_MATCHER = grammar_matcher._Matcher
FAULTS = [
    _fault("sampling", Sampler, "sample", victim=_by_seed, healthy=3),
    _fault("the first sample", Sampler, "sample", victim=_by_seed),
    _fault("a sampler", Sampler, "__init__", victim=lambda _, request, banned: _by_seed(request)),
    _fault("out of memory", Sampler, "sample", victim=_by_seed, failure=_no_memory),
    _fault("a draft", PromptLookup, "propose", victim=_by_ids, healthy=1),
    _fault("appending", Sequence, "append", victim=_by_seed, healthy=2),
    _fault("positions", Sequence, "next_positions", victim=_by_seed, healthy=2),
    _fault("reporting", Sequence, "report", healthy=1,
           victim=lambda sequence: _by_seed(sequence) and sequence.error is None),
    _fault("holding pages", PrefixCache, "hold", victim=_by_ids),
    _fault("known scores", PrefixCache, "scores", params={"prompt_logprobs": 1}, fields={"echo": True, "logprobs": 1}),
    _fault("a known beginning", PrefixCache, "beginning", params={"prompt_logprobs": 1},
           fields={"echo": True, "logprobs": 1}),
    _fault("keeping scores", PrefixCache, "keep_scores", params={"prompt_logprobs": 1},
           fields={"echo": True, "logprobs": 1}),
    _fault("sharing pages", PrefixCache, "share", victim=_by_ids, healthy=1),
    _fault("log-probabilities", sequence, "token_logprobs", params={"logprobs": 2}, fields={"logprobs": 2},
           victim=lambda *args: args[-1] == 2),
    _fault("a prompt's scores", Engine, "_score_prompt", params={"prompt_logprobs": 1},
           fields={"echo": True, "logprobs": 1}),
    _fault("a special token", Tokenizer, "detokenizer", params={"skip_special_tokens": False},
           fields={"skip_special_tokens": False}, victim=lambda _, skip_special_tokens=True: not skip_special_tokens),
    _fault("an adapter", transformer, "add_adapters", adapter=True, healthy=9),
    _grammar("starting a grammar", grammar_matcher.Grammar, "start"),
    *(_grammar(f"a grammar, {name}", _MATCHER, name, healthy=healthy)
      for name, healthy in (("accept", 2), ("forced", 2), ("allowed", 1), ("is_complete", 1), ("is_finished", 1))),
    _grammar("a panic in a grammar", _MATCHER, "allowed", healthy=1, failure=_panic),
    *(Fault(f"output{part}.{method}", partial(_breaks_part, part=part, method=method))
      for part, method in (("_detokenizer", "push"), ("_detokenizer", "flush"), ("_parser", "push"),
                           ("_parser", "finish"), ("_stops", "push"), ("_stops", "flush"), ("_answer", "add"),
                           ("_answer", "message"))),
    *(Fault(f"output_trace.{method}", partial(_breaks_part, part="_trace", method=method), {"logprobs": 1},
            {"logprobs": 1}) for method in ("add", "attach")),
]  # fmt: skip

POOLING = [_fault("adding to a mean", MeanPool, "add"), _fault("the mean", MeanPool, "result")]
"""Places that embeddings come through."""
