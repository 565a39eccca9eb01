"""Bounds of the numbers that options of several backends have in common: a name means the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from glm4.errors import InvalidRequestError
from glm4.system.cpus import MOST_THREADS

_LEAST: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("max_adapters", "adapter_memory", "picture_cache_memory", "max_retries", "kv_store_min"), 0)
    | dict.fromkeys(
        (
            "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory", "kv_store_bytes",
            "num_threads", "tensor_parallel_size", "pipeline_parallel_size",
        ),
        1,
    )
)  # fmt: skip


def check_numbers(options: object) -> None:
    """Refuse numbers out of bounds; None, where an option allows it, is in bounds.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise InvalidRequestError(f"{name} must be at least {least}, not {value}", param=name)
    threads = getattr(options, "num_threads", None)
    if threads is not None and threads > MOST_THREADS:
        raise InvalidRequestError(f"num_threads must be at most {MOST_THREADS}, not {threads}", param="num_threads")
