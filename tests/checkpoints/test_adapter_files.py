"""Adapters from strangers: whatever is not a plain LoRA adapter for this model is refused by name; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_models as gm
from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.errors import CheckpointError, Glm4Error, OutOfMemoryError, TensorError, UnsupportedModelError
from glm4.kernels import get_kernels
from glm4.loading.lora import read_adapter
from glm4.model.config import ModelConfig
from glm4.model.lora import LoraAdapter
from tiny import safetensors_bytes

STEM = "base_model.model.model.layers."
TOWER = "base_model.model.transformer.vision."
Q0 = STEM + "0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    with open_checkpoint(gm.write_checkpoint(tmp_path_factory.mktemp("m"), gm.TINY_MODELS["hf-chat"])) as checkpoint:
        return checkpoint.config


def read(path: Path, config: ModelConfig, model_type: str = "glm", max_nbytes: int = 1 << 30) -> LoraAdapter:
    return read_adapter(path, config, model_type, get_kernels(), format="fp32", max_nbytes=max_nbytes, layers=())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_edited_on_windows_is_read(tmp_path: Path, config: ModelConfig, encoding: str) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    plain = read(path, config)
    file = path / "adapter_config.json"
    file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    assert read(path, config).rank == plain.rank


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["mlp.weight"]),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("corda_config", {"a": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", ["gaussian"]),
        ("init_lora_weights", 1),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("something_new", {"x": 1}),
        ("rank_pattern", {"(a+)+b": 4}),
        ("rank_pattern", {"q_proj": 10**9}),
        ("rank_pattern", {"q_proj": True}),
        ("alpha_pattern", {"q_proj|": 4}),
        ("alpha_pattern", {"q_proj": "4"}),
        ("r", 0),
        ("r", -4),
        ("r", True),
        ("r", 4.0),
        ("r", 1 << 40),
        ("r", None),
        ("lora_alpha", None),
        ("lora_alpha", "8"),
        ("lora_alpha", True),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e300),
    ],
)
def test_an_option_that_is_not_done_is_refused_by_name(
    tmp_path: Path, config: ModelConfig, key: str, value: Any
) -> None:
    path = write_adapter(tmp_path / "a", factors(config), settings(**{key: value}))
    with pytest.raises(UnsupportedModelError, match=key):
        read(path, config)


@pytest.mark.parametrize(("key", "value"), [("rank_pattern", [1]), ("use_rslora", "yes"), ("alpha_pattern", 3)])
def test_an_impossible_value_is_refused(tmp_path: Path, config: ModelConfig, key: str, value: Any) -> None:
    path = write_adapter(tmp_path / "a", factors(config), settings(**{key: value}))
    with pytest.raises(CheckpointError, match=key):
        read(path, config)


def renamed(old: str, new: str) -> Callable[[gm.Tensors], gm.Tensors]:
    def change(tensors: gm.Tensors) -> gm.Tensors:
        return {name.replace(old, new): value for name, value in tensors.items()}

    return change


def with_tensor(name: str, shape: tuple[int, ...]) -> Callable[[gm.Tensors], gm.Tensors]:
    return lambda tensors: tensors | {name: np.ones(shape, np.float32)}


def without(part: str) -> Callable[[gm.Tensors], gm.Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_tensor(STEM + "0.self_attn.q_proj.lora_magnitude_vector", (64,)), "DoRA"),
        (with_tensor("base_model.model.model.embed_tokens.lora_embedding_A", (4, 128)), "embedding"),
        (with_tensor(STEM + "0.self_attn.q_proj.lora_B.bias", (64,)), "bias"),
        (with_tensor("base_model.model.lm_head.weight", (128, 64)), "lm_head"),
        (with_tensor("base_model.model.lm_head.lora_A.weight", (4, 64)), "lm_head"),
        (
            with_tensor(TOWER + "transformer.layers.0.attention.query_key_value.lora_A.weight", (4, 64)),
            r"changes the vision tower .*glm4 merge",
        ),
        (with_tensor(TOWER + "linear_proj.gate_proj.lora_B.weight", (96, 4)), "changes the vision tower"),
        (renamed("q_proj", "w_proj"), "w_proj"),
        (renamed("gate_up_proj", "gate_proj"), "gate_proj"),
        (renamed("layers.1.", "layers.2."), "layers.2"),
        (renamed("layers.1.", "layers.9999."), "9999"),
        (renamed("layers.1.", "layers.01."), "layers.01"),
        (renamed("base_model.model.model", "base_model.model"), "layers.0"),
        (renamed("lora_A", "lora_A.default"), "not a LoRA factor"),
        (with_tensor(Q0, (4, 65)), r"\(4, 65\)"),
        (with_tensor(Q0, (5, 64)), r"\(5, 64\)"),
        (with_tensor(Q0, (4, 64, 1)), r"\(4, 64, 1\)"),
        (with_tensor(Q0, (256,)), r"\(256,\)"),
        (with_tensor(Q0, (0, 64)), r"\(0, 64\)"),
        (without("0.self_attn.q_proj.lora_A"), "without its lora_A"),
        (without("0.self_attn.q_proj.lora_B"), "lacks"),
        (without("layers.1.self_attn.q_proj"), "layer 1 has no factors"),
        (without("q_proj"), "layer 0 has no factors"),
        (lambda _: {}, "no factors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, config: ModelConfig, change: Callable[[gm.Tensors], gm.Tensors], message: str
) -> None:
    path = write_adapter(tmp_path / "a", change(factors(config)))
    with pytest.raises((TensorError, UnsupportedModelError), match=message):
        read(path, config)


def test_a_name_made_to_be_matched_slowly(tmp_path: Path, config: ModelConfig) -> None:
    name = "base_model.model." + ".layers.1.x" * 200_000
    path = write_adapter(tmp_path / "a", factors(config) | {name: np.ones((4, 64), np.float32)})
    with pytest.raises(UnsupportedModelError, match="2200017 characters") as caught:
        read(path, config)
    assert len(str(caught.value)) < 500


def test_factors_under_the_names_of_two_kinds_of_checkpoint(tmp_path: Path, config: ModelConfig) -> None:
    mixed = factors(config)
    stem = "base_model.model.transformer.encoder.layers.0.self_attention.dense.lora_"
    mixed |= {stem + "A.weight": np.ones((4, 64), np.float32), stem + "B.weight": np.ones((64, 4), np.float32)}
    with pytest.raises(TensorError, match="two kinds"):
        read(write_adapter(tmp_path / "a", mixed), config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("letter", ["A", "B"])
def test_factors_that_are_not_finite_are_refused(
    tmp_path: Path, config: ModelConfig, letter: str, value: float
) -> None:
    tensors = factors(config)
    tensors[Q0.replace("lora_A", f"lora_{letter}")][0, 0] = value
    with pytest.raises(TensorError, match="not finite"):
        read(write_adapter(tmp_path / "a", tensors), config)


def test_factors_that_overflow_with_their_scale_are_refused(tmp_path: Path, config: ModelConfig) -> None:
    tensors = factors(config)
    tensors[Q0.replace("lora_A", "lora_B")][0, 0] = 3e38
    with pytest.raises(TensorError, match="not finite"):
        read(write_adapter(tmp_path / "a", tensors, settings(lora_alpha=400)), config)


@pytest.mark.parametrize("dtype", ["F64", "I8", "BOOL", "F8_E4M3"])
def test_other_number_formats_are_refused(tmp_path: Path, config: ModelConfig, dtype: str) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    width = {"F64": 8}.get(dtype, 1)
    header: dict[str, Any] = {}
    data = b""
    for name, value in factors(config).items():
        size = value.size * width
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    text = json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(UnsupportedModelError, match=dtype):
        read(path, config)


def test_pickles_are_refused_unread(tmp_path: Path, config: ModelConfig) -> None:
    path = write_adapter(tmp_path / "a", {})
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match=r"pickle.*safe_serialization"):
        read(path, config)


def test_files_that_are_missing_or_no_files(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match="no adapter at"):
        read(tmp_path / "nowhere", config)
    with pytest.raises(CheckpointError, match="no adapter at"):
        read(tmp_path / "a\0b", config)
    path = write_adapter(tmp_path / "a", factors(config))
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors; fetch"):
        read(path, config)
    (path / "adapter_model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        read(path, config)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', '{"r": 4, "r": 5}', '{"a":' * 500 + "1" + "}" * 500])
def test_a_configuration_that_is_no_json_object(tmp_path: Path, config: ModelConfig, text: str) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    (path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read(path, config)


def test_a_huge_configuration_is_not_read(tmp_path: Path, config: ModelConfig) -> None:
    path = write_adapter(tmp_path / "a", factors(config), settings(x="y" * (2 << 20)))
    with pytest.raises(CheckpointError, match="bytes"):
        read(path, config)


def test_every_cut_of_the_weight_file_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    whole = (path / "adapter_model.safetensors").read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (path / "adapter_model.safetensors").write_bytes(whole[:size])
        with pytest.raises(Glm4Error):
            read(path, config)


def test_an_adapter_that_takes_too_much_is_refused_before_it_is_read(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    needed = read(path, config).nbytes
    read(path, config, max_nbytes=needed)
    monkeypatch.setattr(AdapterFile, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(OutOfMemoryError, match="unload one"):
        read(path, config, max_nbytes=needed - 1)


def test_names_of_another_family_are_refused(tmp_path: Path, config: ModelConfig) -> None:
    path = write_adapter(tmp_path / "a", factors(config))
    for model_type in ("llama", "qwen2"):
        with pytest.raises(UnsupportedModelError, match="gate_up_proj"):
            read(path, config, model_type)
    with pytest.raises(UnsupportedModelError, match="'mamba'"):  # what a packed checkpoint says may be anything
        read(path, config, "mamba")


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ({"q_proj": 2}, "model.layers.0.self_attn.q_proj", 2),
        ({"self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj", 2),
        ({"^model.layers.0.self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj", 2),
        ({"^layers.0.self_attn.q_proj": 2}, "model.layers.0.self_attn.q_proj", 4),
        ({"proj": 2}, "model.layers.0.self_attn.q_proj", 4),
        ({"layers.1.self_attn.q_proj": 3, "q_proj": 2}, "model.layers.1.self_attn.q_proj", 3),
        ({"q_proj": 2, "layers.1.self_attn.q_proj": 3}, "model.layers.1.self_attn.q_proj", 2),
    ],
)
def test_patterns_match_as_in_peft(pattern: dict[str, int], module: str, expected: int) -> None:
    from glm4.checkpoints.peft_adapter import _Settings

    made = _Settings(settings(rank_pattern=pattern), "here")
    assert made.rank(module) == expected
    assert made.scale(module) == 8 / expected


def test_half_precision_factors_are_widened_exactly(tmp_path: Path, config: ModelConfig) -> None:
    kernels = get_kernels()
    tensors = {name: value.astype(np.float16).astype(np.float32) for name, value in factors(config).items()}
    plain = read(write_adapter(tmp_path / "a", tensors), config)
    half = read(write_adapter(tmp_path / "b", tensors, dtype="F16"), config)
    for site, pair in plain.factors.items():
        np.testing.assert_array_equal(kernels.unpack(half.factors[site].a), kernels.unpack(pair.a))
        np.testing.assert_array_equal(kernels.unpack(half.factors[site].b), kernels.unpack(pair.b))
    assert safetensors_bytes(tensors) == (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
