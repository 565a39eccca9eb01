"""Tiny models that vLLM computes on a CPU (its attention there needs heads of 32 or more), and both engines of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glm4 import LLM, SamplingParams
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.prompt import Prompt
from golden_models import TinyModel
from tiny import tiny_model, write_folder

SIZES: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
CONTEXT = 512
PROMPTS = ([97, 98, 99], list(range(32, 64)), [50 + n % 40 for n in range(300)], [200])


def folder_of(path: Path, layout: str) -> tuple[Path, TinyModel]:
    """A checkpoint: "chatglm" or "hf" of GLM-4-9B, or "glm4" of GLM-4-0414."""
    changes = {**SIZES, "architecture": "glm4", "attention_bias": True} if layout == "glm4" else SIZES
    model = tiny_model("chatglm" if layout == "chatglm" else "hf", **changes)
    return write_folder(path, model, dtype="F32"), model


@dataclass(frozen=True)
class Pair:
    """A model in vLLM and in our engine."""

    vllm: LLM
    local: LLM
    model: TinyModel


@contextmanager
def both(path: Path, layout: str, **options: Any) -> Iterator[Pair]:
    """Start vLLM, as a user would, except for its size."""
    folder, model = folder_of(path, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other are slow where others compute
        vllm = LLM(
            str(folder), backend="vllm", dtype="fp32", enforce_eager=True, max_model_len=CONTEXT, max_num_seqs=8,
            kv_cache_memory=1 << 27, **options,
        )  # fmt: skip
    with vllm, LLM(str(folder), dtype="fp32", max_model_len=CONTEXT, max_adapters=2) as local:
        yield Pair(vllm, local, model)


def request(name: str, ids: list[int], params: SamplingParams, **more: Any) -> GenerationRequest:
    """A request of a backend."""
    return GenerationRequest(name, Prompt(ids), params, **more)


def outputs_of(llm: LLM, requests: Sequence[GenerationRequest]) -> dict[str, list[GenerationOutput]]:
    """All outputs until nothing is left, straight from the backend, by request."""
    backend = llm.backend
    for request in requests:
        backend.add_request(request)
    found: dict[str, list[GenerationOutput]] = {}
    while backend.has_unfinished_requests():
        for output in backend.step():
            found.setdefault(output.request_id, []).append(output)
    return found


def tokens_of(outputs: Sequence[GenerationOutput]) -> list[int]:
    """The tokens of one request."""
    return [token for output in outputs for token in output.token_ids]
