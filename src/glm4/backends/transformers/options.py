"""Options of the `transformers` backend."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glm4.backends.option_checks import check_numbers
from glm4.errors import InvalidRequestError

DTYPES = ("auto", "bf16", "fp32")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class TransformersOptions:
    """How to run a model with transformers.

    Attributes:
        dtype: "auto", "bf16" or "fp32". "auto" is bf16 on an accelerator, and on the CPU fp32, or bf16 if fp32 does not
            fit.
        device: "auto" (the first accelerator, else the CPU), "cpu", "cuda", "cuda:N" (ROCm, too) or "mps".
        max_model_len: prompt + output of one sequence; None means as much as the model and memory allow.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: rows of prompts that one step computes.
        kv_cache_memory: bytes for keys and values; None means what `max_num_seqs` full sequences need, up to 60 % of
            the memory that is free once the weights are loaded.
        num_threads: of torch on the CPU, for the whole process; None leaves torch's own choice.
        max_adapters: adapters that may be loaded at once.
        adapter_memory: bytes they may take in total.
    """

    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    kv_cache_memory: int | None = None
    num_threads: int | None = None
    max_adapters: int = 16
    adapter_memory: int = 2 << 30

    def __post_init__(self) -> None:
        if self.dtype in ("fp16", "float16", "half"):
            raise InvalidRequestError(
                "the transformers backend has no fp16: GLM-4's activations exceed what half precision can hold; use"
                " bf16",
                param="dtype",
            )
        if self.dtype not in DTYPES:
            raise InvalidRequestError(
                f"dtype {self.dtype!r:.40} is none that the transformers backend computes in: {', '.join(DTYPES)}",
                param="dtype",
            )
        if not _DEVICE.fullmatch(self.device):
            raise InvalidRequestError(
                f"device must be auto, cpu, cuda, cuda:N or mps, not {self.device!r:.40}", param="device"
            )
        check_numbers(self)
