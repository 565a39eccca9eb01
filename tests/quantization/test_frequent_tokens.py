"""Rows of the head that a calibrated int4 model has once more in int8: which, how near, and when there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import get_kernels
from glm4.loading import weights as loader
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.quantization import checkpoint as quantization
from glm4.quantization import frequent_tokens as module
from glm4.quantization.frequent_tokens import FREQUENT_SHARE, frequent_count, frequent_tokens
from glm4.quantization.report import QuantizationReport
from tiny import VOCAB_SIZE

COUNT = VOCAB_SIZE // FREQUENT_SHARE


@pytest.fixture(autouse=True)
def room_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding alone takes a tiny model beyond 4.6 bits per weight."""
    monkeypatch.setattr(quantization, "MAX_INT4_BITS", 8)


def quantized(source: Path, folder: Path, target: str = "int4", calibrate: bool = True) -> QuantizationReport:
    with open_checkpoint(source) as checkpoint:
        return quantization.quantize(checkpoint, target, folder, calibrate=calibrate)


def load(folder: Path, dtype: str) -> Transformer:
    with open_checkpoint(folder) as checkpoint:
        return load_model(checkpoint, PRECISIONS[dtype], get_kernels())


def test_the_tokens_are_those_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the ones that are certain, nor the ones that never come."""
    rng, kernels = np.random.default_rng(3), get_kernels()
    head = rng.standard_normal((300, 64), dtype=np.float32)
    x = rng.standard_normal((50, 64), dtype=np.float32)
    x[:30] = 20 * head[7]  # certain
    logits = x.astype(np.float64) @ head.T.astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = np.sort(np.argsort(-(p * (1 - p)).sum(axis=0))[:40])
    assert np.argmax(p.sum(axis=0)) == 7
    for rows in (7, 64):
        monkeypatch.setattr(module, "_ROWS", rows)
        found = frequent_tokens(x, kernels.pack("fp32", head), 40, kernels)
        np.testing.assert_array_equal(found, expected)
    assert 7 not in expected


@pytest.mark.parametrize(("room", "count"), [(1e9, 312), (8 * 4288, 256), (4287, 0), (4288, 32), (0, 0), (-1e9, 0)])
def test_their_number_follows_from_the_vocabulary_and_the_room(room: float, count: int) -> None:
    """32 rows of 128 columns take 32 * (128 + 2) bytes, their ids 128."""
    assert frequent_count(10_000, 128, room) == count


@pytest.mark.parametrize(("limit", "count"), [(5.7, COUNT), (5.5, 0)])
def test_the_file_keeps_to_its_bits(tmp_path: Path, limit: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    monkeypatch.setattr(quantization, "MAX_INT4_BITS", limit)
    report = quantized(tiny.write_folder(tmp_path / "m"), tmp_path / "int4")
    frequent = load(tmp_path / "int4", "int4").weights.frequent
    assert (0 if frequent is None else len(frequent.ids)) == count
    assert 5.4 < report.bits_per_weight < limit


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sequences", [1, 3])
def test_their_rows_are_nearer_to_the_original(
    tmp_path: Path, tied: bool, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", sequences)
    source = tiny.write_folder(tmp_path / "m", tiny.tiny_model(tie_word_embeddings=tied))
    report = quantized(source, tmp_path / "int4")
    model, kernels = load(tmp_path / "int4", "int4"), get_kernels()
    frequent = model.weights.frequent
    assert frequent is not None
    assert len(frequent.ids) == frequent.head.rows == COUNT > 5
    assert frequent.head.format == report.kinds["frequent_head"].format == "int8"
    with open_checkpoint(source) as checkpoint:
        exact = checkpoint.load("embed_tokens" if tied else "lm_head")[frequent.ids]
    rounded = kernels.unpack(model.weights.lm_head)[frequent.ids]
    near, far = (float(np.linalg.norm(rows - exact)) for rows in (kernels.unpack(frequent.head), rounded))
    # A head of its own is also fitted to the rounded model's states, which moves its rows.
    assert 0 < near < (0.1 if tied else 0.9) * far
    assert (tmp_path / "int4" / "model.safetensors").stat().st_size == report.nbytes


def test_slabs_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    source = tiny.write_folder(tmp_path / "m", tiny.tiny_model())
    quantized(source, tmp_path / "whole")
    monkeypatch.setattr(loader, "SLAB_NBYTES", 40 * 4 * 64)  # one row block a slab
    quantized(source, tmp_path / "slabs")
    whole, slabs = (load(tmp_path / name, "int4").weights.frequent for name in ("whole", "slabs"))
    assert whole is not None
    assert slabs is not None
    np.testing.assert_array_equal(whole.ids, slabs.ids)
    a, b = (get_kernels().unpack(frequent.head) for frequent in (whole, slabs))
    np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(a).max()))


@pytest.mark.parametrize(("target", "calibrate"), [("int8", True), ("int4", False)])
def test_int8_and_plain_rounding_have_none(
    tmp_path: Path, target: str, calibrate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    report = quantized(tiny.write_folder(tmp_path / "m"), tmp_path / "out", target, calibrate)
    assert load(tmp_path / "out", target).weights.frequent is None
    assert "frequent_head" not in report.kinds
    assert "frequent" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("kept", [True, False])
def test_a_head_that_keeps_its_codes_has_none(tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    exceptions = {} if kept else {"token_embd.weight": "Q8_0", "output.weight": "Q8_0"}
    source = tiny.write_gguf(tmp_path / "m.gguf", "chatglm", quantization="Q4_0", exceptions=exceptions)
    quantized(source, tmp_path / "out")
    assert (load(tmp_path / "out", "int4").weights.frequent is None) == kept
