"""What a request needs of a backend, compared with what the backend can do before anything is queued."""

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
"""Sampling options that not every backend has."""

GRAMMARS = frozenset({Capability.COMPILED_GRAMMARS, Capability.DECLARED_GRAMMARS})
"""Either of them makes an answer follow a grammar."""


def check_supported(
    info: BackendInfo,
    params: SamplingParams,
    *,
    adapter: str | None = None,
    embedding: bool = False,
    grammar: str | None = None,
    media: str | None = None,
) -> None:
    """Refuse a request that asks for more than the backend can do.

    Args:
        adapter: name of the adapter it wants.
        embedding: it wants a vector.
        grammar: the field that makes its answer follow a grammar.
        media: the field with pictures or sounds.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    for option, param, wanted in _needs(params, adapter, embedding, grammar, media):
        if info.capabilities.isdisjoint(wanted):
            able = [name for name, row in BACKENDS.items() if not row.capabilities.isdisjoint(wanted)]
            raise InvalidRequestError(
                f"the {info.name} backend has no {option}; do without, or load the model with another backend"
                f" ({', '.join(able)})",
                param=param,
            )


def _needs(
    params: SamplingParams, adapter: str | None, embedding: bool, grammar: str | None, media: str | None
) -> Iterator[tuple[str, str | None, frozenset[Capability]]]:
    """(option, request field, capabilities of which one is enough) of everything that was asked for."""
    for name, capability in _OPTIONS.items():
        if getattr(params, name) != getattr(SamplingParams, name):
            yield name, name, frozenset({capability})
    if adapter is not None:
        yield "adapters", "model", frozenset({Capability.ADAPTERS})
    if embedding:
        yield "embeddings", None, frozenset({Capability.EMBEDDINGS})
    if grammar is not None:
        yield f"grammars ({grammar})", grammar, GRAMMARS
    if media is not None:
        yield "media", media, frozenset({Capability.MEDIA})
