"""Packed checkpoints whose channels were rescaled: the factors are read, checked, and change no bit of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.packed_writer import packed_file_nbytes
from glm4.errors import CheckpointError, TensorError
from glm4.kernels import get_kernels
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from model_driver import forced_logits
from packing import describe, pack_folder

NAME = "layers.1.down_channel_scale"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("source") / "m", tiny.tiny_model(intermediate_size=100))


def pack(source: Path, folder: Path, value: Any = 1.0) -> Path:
    """A folder with factors: one of them `value`, its neighbours 0.5, the others 1."""
    scale = np.full(100, 0.5, np.float32)
    scale[17] = value
    return pack_folder(source, folder, "int8", get_kernels(), {NAME: scale})


def load(folder: Path) -> Transformer:
    with open_checkpoint(folder) as checkpoint:
        return load_model(checkpoint, PRECISIONS["int8"], get_kernels())


def test_factors_are_read_and_leave_the_answers_alone(source: Path, tmp_path: Path) -> None:
    ids = np.arange(3, 40, dtype=np.int32)
    plain = load(pack_folder(source, tmp_path / "plain", "int8", get_kernels()))
    model = load(pack(source, tmp_path / "scaled", 0.25))
    scale = model.weights.layers[1].down_channel_scale
    assert scale is not None
    assert (scale.dtype, scale.shape) == (np.dtype(np.float32), (100,))
    assert (scale[17], scale[18]) == (0.25, 0.5)
    np.testing.assert_array_equal(model.weights.layers[0].qkv_channel_scale, np.ones(64))
    np.testing.assert_array_equal(forced_logits(model, ids), forced_logits(plain, ids))
    with open_checkpoint(tmp_path / "scaled") as checkpoint:
        assert checkpoint.packed is not None
        checkpoint.packed.verify_sha256()
        size = packed_file_nbytes(checkpoint.config, replace(PRECISIONS["int8"], extras={"channel_scales": True}))
        assert size == (tmp_path / "scaled" / "model.safetensors").stat().st_size
        assert set(checkpoint.tensor_names()) == set(checkpoint.source.names())
        np.testing.assert_array_equal(checkpoint.load(NAME), scale)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -0.0])
def test_factors_that_are_no_positive_numbers_are_refused(source: Path, tmp_path: Path, value: float) -> None:
    folder = pack(source, tmp_path / "bad", value)
    with pytest.raises(TensorError, match=f"{NAME}.*finite and positive"):
        load(folder)


@pytest.mark.parametrize("value", [1, "true", [], {}])
def test_the_configuration_says_yes_or_no(source: Path, tmp_path: Path, value: object) -> None:
    folder = pack(source, tmp_path / "bad")
    describe(folder, channel_scales=value)
    with pytest.raises(CheckpointError, match="channel_scales must be true or false"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [False, None])
def test_factors_nobody_announced_are_refused(source: Path, tmp_path: Path, value: object) -> None:
    """As builds do that know no factors, so they never run an adapter without them."""
    folder = pack(source, tmp_path / "bad")
    describe(folder, channel_scales=value)
    with pytest.raises(TensorError, match="channel_scale"):
        open_checkpoint(folder)


def test_missing_factors_are_named(source: Path, tmp_path: Path) -> None:
    folder = pack_folder(source, tmp_path / "bad", "int8", get_kernels())
    describe(folder, channel_scales=True)
    with pytest.raises(TensorError, match=r"layers\.0\.down_channel_scale"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shape", [[10, 10], [50, 2], [100, 1]])
def test_factors_of_another_shape_are_refused(source: Path, tmp_path: Path, shape: list[int]) -> None:
    file = pack(source, tmp_path / "bad") / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table[NAME]["shape"] = shape
    header = json.dumps(table, separators=(",", ":")).encode().ljust(length)
    assert len(header) == length
    file.write_bytes(data[:8] + header + data[8 + length :])
    with pytest.raises(TensorError, match=NAME):
        open_checkpoint(tmp_path / "bad")
