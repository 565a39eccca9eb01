"""`OpenVINOOptions`: on which device, and how, an exported model is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4.backends.option_checks import check_numbers
from glm4.errors import InvalidRequestError
from glm4.model.kv_cache import check_kv_dtype
from glm4.model.precision import short_dtype

GRAPH_FILE = "openvino_model.xml"
MARK = "glm4_openvino"
"""Key of an export's `config.json`, whose value says how it was made."""

_PRECISIONS = ("auto", "f32", "bf16", "f16")


@dataclass(frozen=True)
class OpenVINOOptions:
    """How to run an exported model.

    Attributes:
        device: "CPU", "GPU", or "GPU.1" and so on for one of several; "AUTO" takes a GPU if OpenVINO finds one.
        compute_precision: "auto" leaves it to OpenVINO (bf16 where the processor has it, inputs rounded to int8 beside
            integer weights); "f32" rounds nothing; "bf16", "f16".
        kv_cache_dtype: "auto" (fp32 if computed in f32, else the device's usual one), "fp32", "fp16" or "int8".
        kv_cache_memory: bytes for the KV cache; None means what `max_num_seqs` full sequences need, up to half of the
            memory that is free beside the weights.
        max_model_len: prompt + output of one sequence; None means as much as the model and the cache allow.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: rows of one forward pass.
        enable_prefix_caching: share the cache of equal prefixes among all requests, of whichever user; those with a
            `cache_salt`, which a server with several keys sets, are then refused.
        num_threads: None leaves it to OpenVINO.
        ov_config: further properties for OpenVINO, by name; they win over the options above.
    """

    device: str = "CPU"
    compute_precision: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = False
    num_threads: int | None = None
    ov_config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.compute_precision not in _PRECISIONS:
            raise InvalidRequestError(
                f"compute_precision must be one of {', '.join(_PRECISIONS)}, not {self.compute_precision!r}",
                param="compute_precision",
            )
        if self.device.upper().startswith("NPU"):
            raise InvalidRequestError(
                "OpenVINO batches requests on CPU and GPU only, not on an NPU; for one at a time, open the folder with "
                "openvino_genai.LLMPipeline",
                param="device",
            )
        check_kv_dtype(self.kv_cache_dtype, "kv_cache_dtype")

    @property
    def cache_dtype(self) -> str:
        """Format of the KV cache: "auto" for the device's usual one, "fp32", "fp16" or "int8"."""
        if self.kv_cache_dtype == "auto" and self.compute_precision == "f32":
            return "fp32"
        return short_dtype(self.kv_cache_dtype)
