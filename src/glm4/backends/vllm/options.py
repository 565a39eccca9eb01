"""`VllmOptions`: how to run a model with vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from glm4.backends.option_checks import check_numbers
from glm4.errors import InvalidRequestError

DTYPES: Mapping[str, str] = MappingProxyType({"auto": "bfloat16", "bf16": "bfloat16", "fp32": "float32"})
"""Our name of a precision -> vLLM's."""

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

OURS: Mapping[str, str] = MappingProxyType(
    {
        "model": "the model is named where it is loaded",
        "tokenizer": "prompts arrive as token ids",
        "skip_tokenizer_init": "prompts arrive as token ids",
        "generation_config": "requests carry every sampling option",
        "seed": "requests without a seed must differ from one start to the next",
        "max_logprobs": "it follows from what requests may ask for",
        "logprobs_mode": "log-probabilities are the model's own, before penalties and temperature",
        "logits_processors": "grammars need ours",
        "additional_config": "grammars need it",
        "async_scheduling": "grammars must know every token before the next one is sampled",
        "speculative_config": "vLLM runs no logits processor with it, and grammars need one",
        "disable_log_stats": "the server's metrics need them",
        "runner": "requests are for tokens",
        "trust_remote_code": "code in checkpoints is never run, and the models we know need none",
        "hf_overrides": "they follow from the model",
        "enable_lora": "set max_adapters",
        "max_cpu_loras": "set max_adapters",
        "data_parallel_size": "run one server per replica (docs/scale.md)",
    }
)
"""Engine arguments that cannot be passed on, and why, or what to use instead."""
_NAMED = {"kv_cache_memory_bytes": "kv_cache_memory"}


@dataclass(frozen=True)
class VllmOptions:
    """How to run a model with vLLM.

    Attributes:
        dtype: precision of weights and KV cache: "bf16" (also "auto") or "fp32".
        max_model_len: prompt + output of one sequence; None means as much as the model and memory allow.
        max_num_seqs: sequences that run at once; None is vLLM's own choice.
        max_num_batched_tokens: rows of one forward pass; None is vLLM's own choice.
        kv_cache_memory: bytes for the KV cache; None means what `gpu_memory_utilization` leaves.
        tensor_parallel_size: GPUs that share every layer.
        pipeline_parallel_size: groups of GPUs that share the model by layers.
        gpu_memory_utilization: share of a GPU's memory that vLLM may use, weights included.
        enforce_eager: no compiled graphs: starts faster, runs slower.
        enable_prefix_caching: keep the KV cache of finished requests and share it with later ones.
        quantization: how vLLM quantizes the weights while loading ("fp8" …); None keeps them.
        max_adapters: LoRA adapters that may be loaded at once; 0 turns them off, which makes every step cheaper.
        max_lora_rank: largest rank of an adapter; memory for it is reserved per adapter of a batch.
        engine_args: further fields of vLLM's EngineArgs.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    quantization: str | None = None
    max_adapters: int = 0
    max_lora_rank: int = 64
    engine_args: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.dtype == "fp16":
            raise InvalidRequestError(
                "dtype fp16 overflows in GLM-4, which then repeats one character; use bf16", param="dtype"
            )
        if self.dtype not in DTYPES:
            raise InvalidRequestError(
                f"the vllm backend has no dtype {self.dtype!r}; it has {', '.join(DTYPES)}", param="dtype"
            )
        check_numbers(self)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InvalidRequestError(
                f"gpu_memory_utilization must be above 0 and at most 1, not {self.gpu_memory_utilization}",
                param="gpu_memory_utilization",
            )
        if self.max_lora_rank not in _RANKS:
            raise InvalidRequestError(
                f"max_lora_rank must be one of {', '.join(map(str, _RANKS))}, not {self.max_lora_rank}",
                param="max_lora_rank",
            )
        self._check_engine_args()

    def _check_engine_args(self) -> None:
        named = {name: name for name in VllmOptions.__dataclass_fields__} | _NAMED
        for name in self.engine_args:
            if name in OURS:
                raise InvalidRequestError(f"engine_args may not set {name}: {OURS[name]}", param="engine_args")
            if name in named:
                raise InvalidRequestError(
                    f"engine_args may not set {name}: {named[name]} is an option of this backend", param="engine_args"
                )
