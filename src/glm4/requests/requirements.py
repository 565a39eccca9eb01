"""Checks what a request needs against what the backend can do, before anything is queued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from glm4.backends.base import BackendInfo, Capability
from glm4.backends.table import BACKENDS
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams

_OPTIONS: Mapping[str, Capability] = MappingProxyType(
    {
        "logit_bias": Capability.LOGIT_BIAS,
        "logprobs": Capability.LOGPROBS,
        "min_tokens": Capability.MIN_TOKENS,
        "prompt_logprobs": Capability.PROMPT_LOGPROBS,
        "seed": Capability.SEED,
    }
)
"""Sampling options that only some backends support."""

GRAMMARS = frozenset({Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS})
"""Either one lets an answer follow a grammar."""


def check_supported(
    info: BackendInfo,
    params: SamplingParams,
    *,
    media: str | None = None,
    adapter: str | None = None,
    embedding: bool = False,
    grammar: str | None = None,
) -> None:
    """Refuse a request that asks for more than the backend can do.

    Args:
        media: the field with a picture or sound, if there is one.
        adapter: name of the adapter it asks for.
        embedding: it asks for a vector.
        grammar: name of the field that makes its answer follow a grammar.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    for option, param, wanted in _needs(params, media, adapter, embedding, grammar):
        if info.capabilities.isdisjoint(wanted):
            able = [name for name, row in BACKENDS.items() if not row.capabilities.isdisjoint(wanted)]
            if info.name in able:
                raise InvalidRequestError(
                    f"this model takes no {option}; do without, or load one that does", param=param
                )
            raise InvalidRequestError(
                f"the {info.name} backend has no {option}; do without, or load the model with another backend"
                f" ({', '.join(able)})",
                param=param,
            )


def _needs(
    params: SamplingParams, media: str | None, adapter: str | None, embedding: bool, grammar: str | None
) -> Iterator[tuple[str, str | None, frozenset[Capability]]]:
    """(option, request field, capabilities any one of which is enough) for everything the request asks for."""
    for name, capability in _OPTIONS.items():
        if getattr(params, name) != getattr(SamplingParams, name):
            yield name, name, frozenset({capability})
    if media is not None:
        yield "pictures or sounds", media, frozenset({Capability.MEDIA})
    if adapter is not None:
        yield "adapters", "model", frozenset({Capability.ADAPTERS})
    if embedding:
        yield "embeddings", None, frozenset({Capability.EMBEDDINGS})
    if grammar is not None:
        yield f"grammars ({grammar})", grammar, GRAMMARS
