"""The table of tensors: one more row is read, packed, mapped, counted and rounded without another line of code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.packed_writer import packed_file_nbytes
from glm4.errors import CheckpointError, TensorError
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight, packed_nbytes
from glm4.loading.packed_folder import write_packed_checkpoint
from glm4.loading.weights import load_model, random_model
from glm4.model.config import ModelConfig
from glm4.model.layers import LayerWeights
from glm4.model.precision import PRECISIONS, weight_nbytes
from glm4.model.shapes import SHAPES
from glm4.model.tensors import (
    EXTRAS,
    STACKS,
    TENSORS,
    Extra,
    TensorRow,
    all_matrices,
    model_tensors,
    num_parameters,
    row_of,
)
from glm4.model.transformer import Transformer
from glm4.planner import plan
from glm4.quantization import checkpoint as quantization
from glm4.requests.processor import Processor
from golden_models import draw, file_tensors
from model_driver import forced_logits
from packing import describe, pack_loaded

IDS = np.arange(3, 40, dtype=np.int32)


@pytest.mark.parametrize("name", SHAPES)
def test_every_row_is_the_sum_of_its_pieces(name: str) -> None:
    config = SHAPES[name]
    for tensor in model_tensors(config).values():
        for sources in tensor.row.sources.values():
            for source in sources if isinstance(sources, tuple) else (sources,):
                if not isinstance(source, str):
                    assert sum(getattr(config, size) for size in source.values()) == tensor.shape[0]


def test_names_lead_back_to_rows() -> None:
    extras = dict.fromkeys(EXTRAS, 4)
    for tensor in model_tensors(SHAPES["glm-4-9b-0414"], extras).values():
        assert row_of(tensor.name) is tensor.row
        assert (len(tensor.shape) == 2) == bool(tensor.row.format)
    with pytest.raises(KeyError):
        row_of("layers.0.unknown")


def test_the_forward_pass_reads_tensors_of_the_table() -> None:
    rows = [*TENSORS.values(), *(row for extra in EXTRAS.values() for row in extra.tensors)]
    names = {row.name.removeprefix("layers.{i}.") for row in rows if row.stack == "layers."}
    assert {field.name for field in fields(LayerWeights)} == names


# One more matrix

EXPERT = TensorRow(
    "layers.{i}.expert", ("gate_up_size", "query_size"), "experts", "linear",
    {"hf": {f"model.layers.{{i}}.expert.{part}.weight": "intermediate_size" for part in ("left", "right")}},
)  # fmt: skip
# A stack of its own, as many layers as there are key-value heads.
TOWER = TensorRow(
    "tower.layers.{i}.proj", ("hidden_size", "head_dim"), "vision", "int8", {"hf": "vision.{i}.proj.weight"}
)


@pytest.fixture
def further_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(monkeypatch)


def add_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (EXPERT, TOWER):
        monkeypatch.setitem(TENSORS, row.name, row)
    monkeypatch.setitem(STACKS, TOWER.stack, "num_key_value_heads")


def write_source(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A tiny model with six more tensors, and what they are to be loaded as."""
    model = tiny.tiny_model()
    rng = np.random.RandomState(5)
    tensors = file_tensors(model, draw(model))
    wanted = {}
    for i in range(2):
        parts = rng.randn(2, model.intermediate_size, model.query_size).astype(np.float32)
        wanted[f"layers.{i}.expert"] = np.concatenate(list(parts))
        for part, name in zip(parts, ("left", "right"), strict=True):
            tensors[f"model.layers.{i}.expert.{name}.weight"] = part
        proj = rng.randn(model.hidden_size, model.head_dim).astype(np.float32)
        wanted[f"tower.layers.{i}.proj"] = tensors[f"vision.{i}.proj.weight"] = proj
    return tiny.write_folder(folder, model, tensors=tensors), wanted


def assert_held(model: Transformer, wanted: dict[str, np.ndarray], format: str) -> None:
    kernels = get_kernels()
    for name, values in wanted.items():
        found, row_format = model.weights.tensors[name], "int8" if name.startswith("tower.") else format
        assert isinstance(found, PackedWeight)
        np.testing.assert_array_equal(found.data, kernels.pack(row_format, values).data)


@pytest.mark.usefixtures("further_rows")
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_one_more_row_is_loaded_packed_and_mapped(tmp_path: Path, dtype: str) -> None:
    source, wanted = write_source(tmp_path / "source")
    with open_checkpoint(source) as checkpoint:
        checkpoint.check()
        for name, values in wanted.items():
            np.testing.assert_array_equal(checkpoint.load(name), values)
        model = load_model(checkpoint, PRECISIONS[dtype], get_kernels())
    assert_held(model, wanted, dtype)
    folder = pack_loaded(source, tmp_path / "packed", dtype, get_kernels())
    with open_checkpoint(folder) as packed:
        assert packed.packed is not None
        packed.packed.verify_sha256()
        mapped = load_model(packed, PRECISIONS[dtype], get_kernels())
    assert_held(mapped, wanted, dtype)
    assert not mapped.weights.tensors["tower.layers.1.proj"].data.flags.writeable  # type: ignore[union-attr]
    np.testing.assert_array_equal(forced_logits(mapped, IDS), forced_logits(model, IDS))


@pytest.mark.parametrize("calibrate", [False, True])
def test_one_more_row_is_quantized(
    tmp_path: Path, further_rows: None, calibrate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration text does not pass through it, so it is rounded plainly."""
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    source, wanted = write_source(tmp_path / "source")
    with open_checkpoint(source) as checkpoint:
        report = quantization.quantize(checkpoint, "int8", tmp_path / "out", calibrate=calibrate)
    assert (report.kinds["expert"].tensors, report.kinds["tower.proj"].tensors) == (2, 2)
    with open_checkpoint(tmp_path / "out") as packed:
        assert_held(load_model(packed, PRECISIONS["int8"], get_kernels()), wanted, "int8")


def test_one_more_row_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SHAPES["smoke"]

    def counts() -> list[int]:
        return [
            num_parameters(config),
            len(all_matrices(config)),
            weight_nbytes(config, PRECISIONS["int4"]),
            plan(config, dtype="int4", context=64).total_weights,
        ]

    before, file = counts(), packed_file_nbytes(config, PRECISIONS["int4"])
    monkeypatch.setitem(TENSORS, EXPERT.name, EXPERT)
    shape, layers = (config.gate_up_size, config.query_size), config.num_hidden_layers
    nbytes = packed_nbytes("int4", *shape)
    more = [layers * n for n in (shape[0] * shape[1], 1, nbytes, nbytes)]
    assert counts() == [old + new for old, new in zip(before, more, strict=True)]
    assert plan(config, dtype="int4", context=64).weights["experts"] == layers * nbytes
    assert packed_file_nbytes(config, PRECISIONS["int4"]) > file + layers * nbytes
    tiny_config = replace(config, num_hidden_layers=1, vocab_size=64)
    made = random_model(tiny_config, PRECISIONS["int4"], get_kernels()).weights
    assert made.tensors["layers.0.expert"].nbytes == nbytes


def test_a_tensor_without_a_row_is_refused_and_a_row_without_a_tensor_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = write_source(tmp_path / "source")
    with open_checkpoint(source) as checkpoint, pytest.raises(TensorError, match=r"6 tensors.*no use for"):
        checkpoint.check()
    add_rows(monkeypatch)
    plain = tiny.write_folder(tmp_path / "plain", tiny.tiny_model())
    with open_checkpoint(plain) as checkpoint, pytest.raises(TensorError, match=r"lacks 6 tensors.*expert\.left"):
        checkpoint.check()


# One more extra

PREFIX = Extra(
    "prefix_tokens", int, "a number of tokens", "a prefix of {} tokens",
    (TensorRow("prefix", ("prefix_tokens", "hidden_size"), "prefix", "fp32"),),
)  # fmt: skip


@pytest.fixture
def with_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A packed checkpoint in which calibrated extras and a trained prefix stand side by side."""
    monkeypatch.setitem(EXTRAS, PREFIX.key, PREFIX)
    values = np.random.RandomState(1).randn(5, 64).astype(np.float32)
    kernels = get_kernels()
    precision = replace(PRECISIONS["int8"], extras={"channel_scales": True, "prefix_tokens": 5})
    (tmp_path / "m").mkdir()
    with open_checkpoint(tiny.write_folder(tmp_path / "source")) as checkpoint:
        tensors = dict(load_model(checkpoint, PRECISIONS["int8"], kernels).weights.tensors)
        tensors["prefix"] = kernels.pack("fp32", values)
        expected = model_tensors(checkpoint.config, precision.extras)
        for name in expected.keys() - tensors.keys():
            tensors[name] = np.ones(expected[name].shape, np.float32)
        order = sorted(expected, key=lambda name: -len(expected[name].shape))
        parts = ((n, t.data if isinstance(t, PackedWeight) else t) for n in order for t in [tensors[n]])
        tokenizer = Processor.load(checkpoint).tokenizer
        write_packed_checkpoint(tmp_path / "m", checkpoint, tokenizer, precision, parts, "a test")
    return tmp_path / "m", values


def test_one_more_extra_is_described_checked_loaded_and_counted(with_prefix: tuple[Path, np.ndarray]) -> None:
    folder, values = with_prefix
    with open_checkpoint(folder) as checkpoint:
        assert "; a prefix of 5 tokens" in checkpoint.notes[0]
        own, config = checkpoint.stored_precision, checkpoint.config
        assert own is not None
        assert own.extras == {"channel_scales": True, "prefix_tokens": 5}
        assert packed_file_nbytes(config, own) == (folder / "model.safetensors").stat().st_size
        model = load_model(checkpoint, own, get_kernels())
        prefix = model.weights.tensors["prefix"]
        assert isinstance(prefix, PackedWeight)
        np.testing.assert_array_equal(get_kernels().unpack(prefix), values)
        np.testing.assert_array_equal(checkpoint.load("prefix"), values)
        planned = plan(config, dtype=own.name, stored=own, context=64)
    assert planned.weights["prefix"] == prefix.nbytes
    assert planned.total_weights == sum(tensor.nbytes for tensor in model.weights.tensors.values())


@pytest.mark.parametrize("value", [True, -1, "5", 1 << 24])
def test_a_wrong_description_of_it_is_refused(with_prefix: tuple[Path, np.ndarray], value: object) -> None:
    describe(with_prefix[0], prefix_tokens=value)
    with pytest.raises(CheckpointError, match="prefix_tokens must be a number of tokens"):
        open_checkpoint(with_prefix[0])


def test_builds_that_do_not_know_it_refuse_the_file(
    with_prefix: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(EXTRAS, PREFIX.key)
    with pytest.raises(CheckpointError):
        open_checkpoint(with_prefix[0])


# What there is today


@pytest.mark.parametrize(
    ("extras", "more"),
    [
        ({}, lambda config: 0),
        ({"frequent_tokens": 320}, lambda config: packed_nbytes("int8", 320, config.hidden_size) + 4 * 320),
        (
            {"channel_scales": True},
            lambda config: 4 * config.num_hidden_layers * (2 * config.hidden_size + config.intermediate_size),
        ),
    ],
)
def test_plans_and_sizes_count_extras(extras: dict[str, int], more: Callable[[ModelConfig], int]) -> None:
    config = SHAPES["smoke"]
    own = replace(PRECISIONS["int4"], extras=extras)
    assert weight_nbytes(config, own) == weight_nbytes(config, PRECISIONS["int4"]) + more(config)
    plain, planned = (plan(config, dtype="int4", stored=stored, context=64) for stored in (None, own))
    assert planned.total_weights == plain.total_weights + more(config)
    assert own == PRECISIONS["int4"]  # extras change no format
