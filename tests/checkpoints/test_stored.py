"""GGUF files with 4-bit tensors: the codes reach the kernels as they are, however tensors are split or permuted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from glm4 import LLM, SamplingParams
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.cli import main
from glm4.errors import CheckpointError, InvalidRequestError, OutOfMemoryError, TensorError
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.kernels.reference_packing import int4_cells
from glm4.loading import weights as loader
from glm4.loading.memory_estimate import Wanted, choose_precision
from glm4.loading.weights import load_model
from glm4.model.precision import (
    PRECISIONS,
    Precision,
    four_bit_share,
    named_precision,
    precision_candidates,
    weight_nbytes,
)
from glm4.model.tensors import all_matrices
from glm4.planner import plan
from glm4.system.memory import Room
from model_driver import forced_logits
from packing import pack_loaded

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}  # what super-blocks of 256 need
LAYERS = ("qkv", "o", "gate_up", "down")


def write(path: Path, architecture: Any = "llama", quantization: str = "Q4_0", **options: Any) -> Path:
    model = tiny.gguf_model(architecture, **(WIDE if quantization == "Q4_K" else {}))
    return tiny.write_gguf(path, architecture, model, quantization=quantization, **options)


def stored_of(checkpoint: Checkpoint) -> Precision:
    precision = checkpoint.stored_precision
    assert precision is not None
    return precision


def matrices(checkpoint: Checkpoint, precision: Precision) -> dict[str, PackedWeight]:
    model = load_model(checkpoint, precision, get_kernels())
    return {name: tensor for name, tensor in model.weights.tensors.items() if isinstance(tensor, PackedWeight)}


def assert_codes_kept(weight: PackedWeight, values: NDArray[np.float32]) -> None:
    """Within each group the file's weights are an affine function of the packed codes: nothing was rounded again.

    Holds for matrices whose groups were rounded from drawn weights, so that each has several codes.
    """
    cells = np.ascontiguousarray(int4_cells(weight).quants.swapaxes(1, 2))
    codes = cells.reshape(-1, weight.cols)[: weight.rows].reshape(-1, 32).astype(np.float64)
    groups = values.reshape(-1, 32).astype(np.float64)
    low, high = codes.argmin(axis=1), codes.argmax(axis=1)
    each = np.arange(len(codes))
    span = codes[each, high] - codes[each, low]
    assert (span >= 3).all()
    step = (groups[each, high] - groups[each, low]) / span
    expected = groups[each, low][:, None] + step[:, None] * (codes - codes[each, low][:, None])
    np.testing.assert_allclose(groups, expected, rtol=0, atol=1e-5 * np.abs(groups).max())
    error = get_kernels().unpack(weight) - values
    assert np.sqrt(np.square(error).sum() / np.square(values).sum()) < 0.01


@pytest.mark.parametrize("dtype", ["stored", "int4"])
@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize(
    ("architecture", "fused"), [("chatglm", True), ("chatglm", False), ("glm4", True), ("llama", True), ("qwen2", True)]
)
def test_codes_are_kept(tmp_path: Path, architecture: str, fused: bool, quantization: str, dtype: str) -> None:
    """Columns: 64 and 96 (no multiple of 128) or 256 and 512. qwen2 files hold half-split rows, which move."""
    path = write(tmp_path / "m.gguf", architecture, quantization, fused=fused)
    with open_checkpoint(path) as checkpoint:
        found = matrices(checkpoint, named_precision(dtype, checkpoint.stored_precision))
        assert found.keys() == all_matrices(checkpoint.config).keys()
        for name, weight in found.items():
            assert weight.format == "int4"
            assert_codes_kept(weight, checkpoint.load(name))


def test_each_matrix_has_the_nearest_format(tmp_path: Path) -> None:
    """A fused matrix is int4 only if all its pieces are; gate and up may have different 4-bit types."""
    exceptions = {
        "0.attn_v.weight": "Q8_0",
        "ffn_gate.weight": "Q4_1",
        "1.ffn_down.weight": "Q5_0",
        "token_embd.weight": "F16",
    }
    path = write(tmp_path / "m.gguf", "llama", "Q4_0", exceptions=exceptions)
    int8 = {"embed_tokens", "layers.0.qkv", "layers.1.down"}
    with open_checkpoint(path) as checkpoint:
        found = matrices(checkpoint, stored_of(checkpoint))
        assert {name for name, weight in found.items() if weight.format == "int8"} == int8
        for name, weight in found.items():
            if name in int8:
                np.testing.assert_array_equal(weight.data, get_kernels().pack("int8", checkpoint.load(name)).data)
            else:
                assert_codes_kept(weight, checkpoint.load(name))
        again = matrices(checkpoint, PRECISIONS["int4"])
        assert {weight.format for weight in again.values()} == {"int4"}
        for name in found.keys() - int8:
            np.testing.assert_array_equal(again[name].data, found[name].data)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_slabs_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """A slab may begin inside a head, and inside a piece of a fused matrix."""
    with open_checkpoint(write(tmp_path / "m.gguf", architecture)) as checkpoint:
        whole = matrices(checkpoint, stored_of(checkpoint))
        monkeypatch.setattr(loader, "SLAB_NBYTES", 1)
        for name, weight in matrices(checkpoint, stored_of(checkpoint)).items():
            np.testing.assert_array_equal(weight.data, whole[name].data)


def test_codes_of_some_rows(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path / "m.gguf", "qwen2", exceptions={"ffn_down.weight": "Q8_0"})) as checkpoint:
        name = "layers.1.qkv"
        values = checkpoint.load_codes(name, 5, 100).values()
        np.testing.assert_allclose(values, checkpoint.load(name)[5:100], atol=1e-6)
        with pytest.raises(TensorError, match="not stored as 4-bit codes"):
            checkpoint.load_codes("layers.1.down", 0, 32)
        for start, stop in ((0, 0), (-1, 5), (0, 129)):
            with pytest.raises(TensorError, match="has no rows"):
                checkpoint.load_codes(name, start, stop)
        source: Any = checkpoint.source
        with pytest.raises(TensorError, match=r"'blk.0.ffn_down.weight' is Q8_0, which has no 4-bit codes"):
            source.read_codes("blk.0.ffn_down.weight", 0, 1)
        with pytest.raises(TensorError, match="has no rows"):
            source.read_codes("blk.0.attn_q.weight", 0, 1000)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    with open_checkpoint(path) as checkpoint:
        source: Any = checkpoint.source
        offset = source._entry("blk.1.ffn_up.weight")[1].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint, pytest.raises(TensorError, match="not finite"):
        load_model(checkpoint, stored_of(checkpoint), get_kernels())


@pytest.mark.parametrize("architecture", ["chatglm", "glm4", "llama", "qwen2"])
def test_sizes_are_known_before_loading(tmp_path: Path, architecture: str) -> None:
    path = write(tmp_path / "m.gguf", architecture, exceptions={"attn_output.weight": "Q8_0"})
    with open_checkpoint(path) as checkpoint:
        stored, config = stored_of(checkpoint), checkpoint.config
        weights = load_model(checkpoint, stored, get_kernels()).weights
        planned = plan(config, dtype="stored", stored=stored, context=64)
    assert planned.dtype == "stored"
    assert planned.total_weights == sum(tensor.nbytes for tensor in weights.tensors.values())
    sizes = [weight_nbytes(config, p) for p in (PRECISIONS["int4"], stored, PRECISIONS["int8"])]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


# Packed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exceptions = {"0.attn_v.weight": "Q8_0", "token_embd.weight": "Q8_0"}
    return write(tmp_path_factory.mktemp("source") / "m.gguf", "qwen2", exceptions=exceptions)


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_loaded(source, tmp_path_factory.mktemp("packed") / "m", "stored", get_kernels())


def test_packed_and_read_again(source: Path, folder: Path) -> None:
    ids = np.arange(3, 40, dtype=np.int32)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["precision"]["exceptions"] == dict.fromkeys(
        ["layers.0.o", "layers.0.gate_up", "layers.0.down", *(f"layers.1.{name}" for name in LAYERS)], "int4"
    )
    assert set(section["formats"]) == {"int8", "int4"}
    with open_checkpoint(source) as checkpoint, open_checkpoint(folder) as packed:
        assert packed.packed is not None
        assert packed.packed.precision == packed.stored_precision == stored_of(checkpoint)
        expected = forced_logits(load_model(checkpoint, stored_of(checkpoint), get_kernels()), ids)
        model = load_model(packed, packed.packed.precision, get_kernels())
        assert not model.weights.layers[1].down.data.flags.writeable
        for name in all_matrices(packed.config):
            assert packed.source.info(name).dtype == stored_of(checkpoint).format_of(name)
    np.testing.assert_array_equal(forced_logits(model, ids), expected)


def test_a_packed_one_runs_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLM(str(folder), max_model_len=64) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "stored"
    with pytest.raises(InvalidRequestError, match="packed as stored and cannot be run as int8"):
        LLM(str(folder), dtype="int8")
    assert main(["plan", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "stored"
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"] == {"F32": 7, "int4": 7, "int8": 2}


@pytest.mark.parametrize(
    ("exceptions", "says"),
    [
        (None, "weight formats"),
        ({}, "weight formats"),
        (["layers.0.o"], "weight formats"),
        ({"layers.0.o": "int3"}, "weight formats"),
        ({"layers.0.o": "fp32"}, "weight formats"),
        ({"layers.0.o": ["int4"]}, "weight formats"),
        ({"layers.9.o": "int4"}, "are not matrices: .'layers.9.o'"),
        ({"layers.0.input_layernorm": "int4"}, "are not matrices"),
        ({"checksums": "int4"}, "are not matrices"),
        ({"embed_tokens": "int4"}, "the configuration needs"),
    ],
)
def test_hostile_descriptions(folder: Path, tmp_path: Path, exceptions: object, says: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["precision"]["exceptions"] = exceptions
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path / "copy")


# What a dtype means


def test_it_is_for_files_with_4_bit_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = tiny.write_folder(tmp_path / "folder")
    eight = write(tmp_path / "eight.gguf", quantization="Q8_0")
    # one 4-bit piece makes no 4-bit matrix
    piece = write(tmp_path / "piece.gguf", quantization="Q8_0", exceptions={"attn_q.weight": "Q4_0"})
    for path in (safetensors, eight, piece):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.stored_precision is None
        with pytest.raises(InvalidRequestError, match=r"keeps the 4-bit codes of GGUF files .* leave dtype at auto"):
            LLM(str(path), dtype="stored")
        assert main(["plan", str(path), "--dtype", "stored"]) == 2
        assert "has none" in capsys.readouterr().err
    assert main(["bench", "--random", "glm-4-9b", "--dtype", "stored"]) == 2
    assert "has none" in capsys.readouterr().err


def test_what_does_not_fit(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path / "m.gguf")) as checkpoint, pytest.raises(OutOfMemoryError, match="in stored"):
        choose_precision(checkpoint.config, Wanted("stored"), Room(1 << 20), stored_of(checkpoint))


@pytest.mark.parametrize(
    ("architecture", "exceptions", "expected"),
    [
        ("llama", {}, "stored"),
        ("llama", {"token_embd.weight": "Q8_0"}, "stored"),
        ("llama", {"ffn_gate.weight": "Q8_0", "ffn_down.weight": "Q5_0"}, "stored"),
        ("llama", {"ffn_gate.weight": "Q8_0", "ffn_down.weight": "Q5_0", "attn_k.weight": "Q8_0"}, "int8"),
        ("chatglm", {"ffn_up.weight": "Q8_0"}, "stored"),
        ("chatglm", {"ffn_up.weight": "Q8_0", "output.weight": "Q8_0"}, "int8"),  # attn_output too
    ],
)
def test_auto_keeps_codes_where_they_are_most_of_the_weights(
    tmp_path: Path, architecture: str, exceptions: dict[str, str], expected: str
) -> None:
    with open_checkpoint(write(tmp_path / "m.gguf", architecture, exceptions=exceptions)) as checkpoint:
        stored, config = stored_of(checkpoint), checkpoint.config
    assert [found.name for found in precision_candidates("auto", config, stored)] == [expected, "int4"]
    assert (four_bit_share(config, stored) > 0.5) == (expected == "stored")
    assert precision_candidates("auto", config)[0].name == "int8"


def test_commands(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(source)]) == 0
    assert "7 x int4, 2 x int8" in capsys.readouterr().out
    assert main(["plan", str(source), "--dtype", "stored"]) == 0
    assert "stored weights" in capsys.readouterr().out
    assert main(["generate", "-m", str(source), "--dtype", "stored", "--max-tokens", "4", "--context", "64", "a"]) == 0
    assert main(["bench", "-m", str(source), "--dtype", "stored", "--json", "--prompt", "4", "--context", "8"]) == 0
    assert '"dtype": "stored"' in capsys.readouterr().out
