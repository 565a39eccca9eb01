"""Prefixes from strangers: whatever is not one for this model is refused by name; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_models as gm
from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.checkpoints.peft_prefix import PrefixFile
from glm4.errors import (
    CheckpointError,
    Glm4Error,
    InvalidRequestError,
    OutOfMemoryError,
    TensorError,
    UnsupportedModelError,
)
from glm4.kernels import get_kernels
from glm4.loading.adapters import read_any_adapter, read_prefix
from glm4.model.config import ModelConfig
from glm4.model.prefix import PrefixAdapter
from prefix_files import prefix_settings, prefix_tensors, write_prefix

COUNT = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    with open_checkpoint(gm.write_checkpoint(tmp_path_factory.mktemp("m"), gm.TINY_MODELS["hf-chat"])) as checkpoint:
        return checkpoint.config


def read(path: Path, config: ModelConfig, model_type: str = "glm", **limits: int) -> PrefixAdapter:
    return read_prefix(path, config, model_type, **({"max_nbytes": 1 << 30, "max_model_len": 512} | limits))


def read_any(path: Path, config: ModelConfig) -> object:
    return read_any_adapter(
        path, config, "glm", get_kernels(), format="fp32", max_nbytes=1 << 30, layers=(), max_model_len=64
    )


def test_layout_of_the_file(tmp_path: Path, config: ModelConfig) -> None:
    """By token: for each layer its key, then its value; heads one after the other."""
    path = write_prefix(tmp_path / "a", config, COUNT)
    flat = prefix_tensors(config, COUNT)["prompt_embeddings"]
    prefix = read(path, config)
    assert prefix.keys.shape == (config.num_hidden_layers, COUNT, config.num_key_value_heads, config.head_dim)
    assert prefix.num_virtual_tokens == COUNT
    size, dim = config.key_value_size, config.head_dim
    for layer in range(config.num_hidden_layers):
        row = flat[3, 2 * layer * size :]
        np.testing.assert_array_equal(prefix.keys[layer, 3, 1], row[dim : 2 * dim])
        np.testing.assert_array_equal(prefix.values[layer, 3, 1], row[size + dim : size + 2 * dim])
    assert prefix.nbytes == flat.nbytes
    assert prefix.digest == read(path, config).digest
    assert prefix.digest != replace(prefix, values=-prefix.values).digest
    assert prefix.number != read(path, config).number


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_widened_exactly(tmp_path: Path, config: ModelConfig, dtype: str) -> None:
    tensors = {name: np.round(value, 1) for name, value in prefix_tensors(config, COUNT).items()}
    tensors = {name: (value * 8).round() / 8 for name, value in tensors.items()}  # exact in both formats
    plain = read(write_adapter(tmp_path / "a", tensors, prefix_settings(config, COUNT)), config)
    half = read(write_adapter(tmp_path / "b", tensors, prefix_settings(config, COUNT), dtype=dtype), config)
    np.testing.assert_array_equal(half.keys, plain.keys)
    np.testing.assert_array_equal(half.values, plain.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"something_new": {"x": 1}}, "something_new"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({"num_layers": 40}, "num_layers is 40, and this model needs 2; .*another model"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, and this model needs 2"),
        ({"token_dim": 64}, "token_dim is 64, and this model needs 32"),
        ({"token_dim": 32.0}, "token_dim"),
        ({"num_layers": None}, "num_layers is None"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": -1}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 1 << 60}, "num_virtual_tokens must be 1 to 131070"),
        ({"num_virtual_tokens": "6"}, "num_virtual_tokens"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, config: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    given = prefix_settings(config, COUNT, **changes)
    path = write_adapter(tmp_path / "a", prefix_tensors(config, COUNT), given)
    with pytest.raises(UnsupportedModelError, match=message):
        read(path, config)


@pytest.mark.parametrize(
    "changes", [{"prefix_projection": True, "encoder_hidden_size": 512}, {"num_transformer_submodules": None},
                {"init_weights": "zero"}, {"inference_mode": False}],
)  # fmt: skip
def test_options_of_training_make_no_difference(tmp_path: Path, config: ModelConfig, changes: dict[str, Any]) -> None:
    given = prefix_settings(config, COUNT, **changes)
    read(write_adapter(tmp_path / "a", prefix_tensors(config, COUNT), given), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: {"prompt_embeddings": value[1:]}, r"\(5, 128\); 6 virtual tokens of this model need \(6, 128\)"),
        (lambda value: {"prompt_embeddings": value[:, 1:]}, r"\(6, 127\)"),
        (lambda value: {"prompt_embeddings": value[None]}, r"\(1, 6, 128\)"),
        (lambda value: {"prompt_embeddings": value.reshape(-1)}, r"\(768,\)"),
        (lambda value: {"prompt_embeddings": value[:0]}, r"\(0, 128\)"),
        (lambda value: {"prompt_embeddings": value, "x" * 9999: value}, "which is not a part of a prefix"),
        (lambda value: {"embedding.weight": value}, "embedding.weight"),
        (lambda value: {}, "lacks 'prompt_embeddings'"),
        (lambda value: {"prompt_embeddings": np.where(value > 2, np.nan, value)}, "not finite"),
        (lambda value: {"prompt_embeddings": np.where(value > 2, np.inf, value)}, "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, config: ModelConfig, change: Callable[[Any], gm.Tensors], message: str
) -> None:
    tensors = change(prefix_tensors(config, COUNT)["prompt_embeddings"])
    path = write_adapter(tmp_path / "a", tensors, prefix_settings(config, COUNT))
    with pytest.raises(TensorError, match=message) as caught:
        read(path, config)
    assert len(str(caught.value)) < 600


def test_order_of_channels_goes_by_the_model(tmp_path: Path, config: ModelConfig) -> None:
    path = write_prefix(tmp_path / "a", config, COUNT)
    plain, half = read(path, config), read(path, config, "qwen2")
    turned = config.rotary_dim
    assert 0 < turned < config.head_dim
    np.testing.assert_array_equal(half.keys[..., 0:turned:2], plain.keys[..., : turned // 2])
    np.testing.assert_array_equal(half.keys[..., 1:turned:2], plain.keys[..., turned // 2 : turned])
    np.testing.assert_array_equal(half.keys[..., turned:], plain.keys[..., turned:])
    np.testing.assert_array_equal(half.values, plain.values)
    with pytest.raises(UnsupportedModelError, match="original_rope"):
        read(path, replace(config, rotary_half_split=True), "chatglm")
    with pytest.raises(UnsupportedModelError, match="'mamba'"):  # what a packed checkpoint says may be anything
        read(path, config, "mamba")


def test_what_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_prefix(tmp_path / "a", config, COUNT)
    needed = read(path, config, max_model_len=COUNT + 2).nbytes
    read(path, config, max_nbytes=needed)
    monkeypatch.setattr(PrefixFile, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(OutOfMemoryError, match="unload one"):
        read(path, config, max_nbytes=needed - 1)
    with pytest.raises(InvalidRequestError, match=r"6 virtual tokens .* no room in the context of 7"):
        read(path, config, max_model_len=COUNT + 1)


def test_files_that_are_damaged_or_missing(tmp_path: Path, config: ModelConfig) -> None:
    path = write_prefix(tmp_path / "a", config, COUNT)
    file = path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 8, 60, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(Glm4Error):
            read(path, config)
    file.unlink()
    (path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match=r"pickle.*safe_serialization"):
        read(path, config)
    (path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING", "peft_type": "LORA"}')
    file.write_bytes(whole)
    with pytest.raises(CheckpointError):
        read_any(path, config)


def test_other_number_formats_are_refused(tmp_path: Path, config: ModelConfig) -> None:
    path = write_prefix(tmp_path / "a", config, COUNT)
    header = {"prompt_embeddings": {"dtype": "I8", "shape": [COUNT, 128], "data_offsets": [0, COUNT * 128]}}
    text = json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(COUNT * 128))
    with pytest.raises(UnsupportedModelError, match="I8"):
        read(path, config)


def test_the_kind_of_an_adapter_is_what_its_settings_say(tmp_path: Path, config: ModelConfig) -> None:
    assert isinstance(read_any(write_prefix(tmp_path / "prefix", config, COUNT), config), PrefixAdapter)
    assert not isinstance(read_any(write_adapter(tmp_path / "lora", factors(config)), config), PrefixAdapter)
    with pytest.raises(UnsupportedModelError, match=r"'PREFIX_TUNING'.* backend local or transformers"):
        AdapterFile(tmp_path / "prefix", config, "glm")  # as vLLM and exports read adapters
    dora = write_adapter(tmp_path / "dora", factors(config), settings(use_dora=True))
    with pytest.raises(UnsupportedModelError, match=r"use_dora.*glm4 merge"):
        read_any(dora, config)
    other = write_adapter(tmp_path / "other", factors(config), settings(peft_type="LOHA"))
    with pytest.raises(UnsupportedModelError, match="'LOHA'"):
        read_any(other, config)


def test_a_training_run_stands_for_its_last_adapter(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match="no adapter at"):
        read_any(tmp_path, config)
    for count in (3, 12, 5):
        write_prefix(tmp_path / f"checkpoint-{count}", config, count)
    (tmp_path / "checkpoint-99").mkdir()
    found = read_any(tmp_path, config)
    assert isinstance(found, PrefixAdapter)
    assert (found.num_virtual_tokens, found.path) == (12, str(tmp_path / "checkpoint-12"))
    write_prefix(tmp_path, config, 7)
    found = read_any(tmp_path, config)
    assert isinstance(found, PrefixAdapter)
    assert found.num_virtual_tokens == 7
