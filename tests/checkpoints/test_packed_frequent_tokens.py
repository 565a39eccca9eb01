"""Packed checkpoints with rows of the head once more in int8: those rows count, and what is no id is refused."""

from __future__ import annotations

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
from glm4.model.layers import ModelWeights
from glm4.model.precision import PRECISIONS
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS, head_name
from glm4.model.transformer import Transformer
from model_driver import forced_logits
from packing import describe, pack_folder

IDS = np.array([3, 17, 40, 200], np.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of its own, and one that is the embedding."""
    folder = tmp_path_factory.mktemp("source")
    return tiny.write_folder(folder / "m", tiny.tiny_model(tie_word_embeddings=request.param))


def load(folder: Path) -> Transformer:
    with open_checkpoint(folder) as checkpoint:
        return load_model(checkpoint, PRECISIONS["int4"], get_kernels())


def test_their_rows_take_the_place_of_the_heads(source: Path, tmp_path: Path) -> None:
    text, ids = np.arange(3, 40, dtype=np.int32), IDS.astype(int)
    kernels = get_kernels()
    plain = load(pack_folder(source, tmp_path / "plain", "int4", kernels))
    model = load(pack_folder(source, tmp_path / "frequent", "int4", kernels, frequent=IDS))
    frequent = model.weights.frequent
    assert frequent is not None
    np.testing.assert_array_equal(frequent.ids, ids)
    with open_checkpoint(source) as checkpoint:
        head = checkpoint.load(head_name(checkpoint.config))
    np.testing.assert_array_equal(kernels.unpack(frequent.head), kernels.unpack(kernels.pack("int8", head[:4])))
    first = Transformer(model.config, ModelWeights({**plain.weights.tensors, "lm_head": frequent.head}), kernels)
    expected = forced_logits(plain, text)
    assert not np.array_equal(expected[:, ids], forced_logits(first, text))
    expected[:, ids] = forced_logits(first, text)
    np.testing.assert_array_equal(forced_logits(model, text), expected)
    assert model.weights.nbytes == plain.weights.nbytes + frequent.head.nbytes


def test_the_file_is_as_announced(source: Path, tmp_path: Path) -> None:
    folder = pack_folder(source, tmp_path / "m", "int4", get_kernels(), frequent=IDS)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        checkpoint.packed.verify_sha256()
        size = packed_file_nbytes(checkpoint.config, replace(PRECISIONS["int4"], extras={"frequent_tokens": 4}))
        assert size == (folder / "model.safetensors").stat().st_size
        names = set(checkpoint.tensor_names())
        assert names == set(checkpoint.source.names()) == set(load(folder).weights.tensors)
        assert {FREQUENT_HEAD, FREQUENT_TOKENS} < names
        np.testing.assert_array_equal(checkpoint.load(FREQUENT_TOKENS), IDS)
        assert checkpoint.load(FREQUENT_HEAD).shape == (4, checkpoint.config.hidden_size)


@pytest.mark.parametrize("wrong", [[3, 2], [3, 3], [-1, 3], [3, 5000], [3, 4.5], [3, np.nan], [3, np.inf], [3, 1e30]])
def test_ids_that_are_none_are_refused(source: Path, tmp_path: Path, wrong: list[float]) -> None:
    folder = pack_folder(source, tmp_path / "bad", "int4", get_kernels(), frequent=np.array(wrong, np.float32))
    with pytest.raises(TensorError, match=f"{FREQUENT_TOKENS}.*ascending ids"):
        load(folder)


@pytest.mark.parametrize("value", [-1, True, "4", 4.0, [], 1 << 24, 1 << 70])
def test_the_configuration_gives_their_number(source: Path, tmp_path: Path, value: object) -> None:
    folder = pack_folder(source, tmp_path / "bad", "int4", get_kernels(), frequent=IDS)
    describe(folder, frequent_tokens=value)
    with pytest.raises(CheckpointError, match="frequent_tokens must be a number of tokens"):
        open_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"frequent_tokens": None}, {"frequent_tokens": 5}])
def test_another_number_than_there_are_is_refused(source: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = pack_folder(source, tmp_path / "bad", "int4", get_kernels(), frequent=IDS)
    describe(folder, **changes)
    with pytest.raises((TensorError, CheckpointError), match=r"frequent_|weight formats"):
        open_checkpoint(folder)


def test_missing_rows_are_named(source: Path, tmp_path: Path) -> None:
    folder = pack_folder(source, tmp_path / "bad", "int4", get_kernels())
    with_rows = pack_folder(source, tmp_path / "good", "int4", get_kernels(), frequent=IDS)
    (folder / "config.json").write_text((with_rows / "config.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    describe(folder, weights={"file": "model.safetensors", "nbytes": size, "sha256": "0" * 64})
    with pytest.raises(TensorError, match=FREQUENT_HEAD):
        open_checkpoint(folder)
