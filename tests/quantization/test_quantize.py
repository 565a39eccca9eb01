"""`quantize`: what it writes, what it refuses, what is left when it is killed, and how much memory it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.errors import CheckpointError, DiskFullError, InvalidRequestError, ModelNotFoundError
from glm4.kernels import get_kernels
from glm4.kernels.formats import packed_nbytes
from glm4.loading import weights as loader
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS
from glm4.model.tensors import num_parameters
from glm4.quantization import checkpoint as quantization
from glm4.quantization.calibration_text import calibration_text
from glm4.quantization.report import KindError, QuantizationReport
from glm4.requests.processor import Processor
from glm4.system import atomic_folder as atomic_folder_module
from glm4.system.atomic_folder import atomic_folder, partial_of
from golden_models import draw, file_tensors
from model_driver import forced_logits
from packing import pack_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("source") / "model", generation_config={"top_p": 0.5})


def quantize(
    source: Path, folder: Path, target: str = "int4", *, force: bool = False, calibrate: bool = False
) -> QuantizationReport:
    with open_checkpoint(source) as checkpoint:
        return quantization.quantize(checkpoint, target, folder, force=force, calibrate=calibrate)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_slabs_give_the_file_that_whole_tensors_give(
    source: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SLAB_NBYTES", 40 * 4 * 64)  # one row block a slab
    (source / "LICENSE").write_text("the model's license")
    quantize(source, tmp_path / "a", target)
    whole = pack_folder(source, tmp_path / "b", target, get_kernels())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {*files(tmp_path / "a")} == {*files(whole), "quantization_report.json"}
    assert (tmp_path / "a" / "LICENSE").read_text() == "the model's license"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_the_report_is_what_the_weights_say(source: Path, tmp_path: Path, target: str) -> None:
    report = quantize(source, tmp_path / "out", target)
    kernels, precision = get_kernels(), PRECISIONS[target]
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        for kind in ("qkv", "o", "gate_up", "down"):
            weights = [checkpoint.load(f"layers.{i}.{kind}") for i in range(2)]
            restored = [kernels.unpack(kernels.pack(precision.linear, weight)) for weight in weights]
            error = sum(np.square(w - q, dtype=np.float64).sum() for w, q in zip(weights, restored, strict=True))
            norm = sum(np.square(w, dtype=np.float64).sum() for w in weights)
            row = report.kinds[kind]
            assert row.relative_rmse == pytest.approx(float(np.sqrt(error / norm)), rel=1e-6)
            assert (row.format, row.tensors) == (precision.linear, 2)
            assert row.weights == sum(weight.size for weight in weights)
            assert row.nbytes == sum(packed_nbytes(precision.linear, *weight.shape) for weight in weights)
    assert list(report.kinds) == ["embed_tokens", "qkv", "o", "gate_up", "down", "lm_head"]
    assert report.kinds["lm_head"].format == precision.embedding == target
    assert report.calibration_tokens == 0
    assert report.kinds["qkv"].relative_output_rmse is None
    assert 0.001 < report.relative_rmse < (0.01 if target == "int8" else 0.15)
    assert report.nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.bits_per_weight == 8 * report.nbytes / num_parameters(config)
    saved = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert saved == json.loads(json.dumps(report.as_dict()))


@pytest.mark.parametrize("target", ["int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_calibration_brings_outputs_closer(
    tmp_path: Path, tied: bool, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 3)
    source = tiny.write_folder(tmp_path / "model", tiny.tiny_model("hf", tie_word_embeddings=tied))
    report = quantize(source, tmp_path / "out", target, calibrate=True)
    assert report.calibration_tokens == 3 * 512
    expected = ["embed_tokens", "qkv", "o", "gate_up", "down", *(() if tied else ("lm_head",))]
    assert list(report.kinds) == expected
    with open_checkpoint(source) as checkpoint, open_checkpoint(tmp_path / "out") as packed:
        ids = calibration_text(checkpoint, Processor.load(checkpoint), 3)
        plain = load_model(checkpoint, PRECISIONS[target], get_kernels())
        for name, kind in report.kinds.items():
            assert kind.tensors == (1 if name in ("embed_tokens", "lm_head") else 2)
            assert kind.bits_per_weight == pytest.approx(8 * kind.nbytes / kind.weights)
        assert packed.packed is not None
        packed.packed.verify_sha256()
        made = load_model(packed, PRECISIONS[target], get_kernels())
        exact = load_model(checkpoint, PRECISIONS["fp32"], get_kernels())
    errors = []
    for model in (made, plain):
        logits = [forced_logits(m, ids.reshape(-1)[:400], chunk=400) for m in (exact, model)]
        errors.append(float(np.square(logits[1] - logits[0]).mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("architecture", ["qwen2", "chatglm"])
@pytest.mark.parametrize("calibrate", [False, True])
def test_codes_of_a_file_are_kept(
    tmp_path: Path, architecture: tiny.GGUFArchitecture, calibrate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int4 from a 4-bit GGUF file is what loading it as int4 is: rounding its codes again costs ten times the error."""
    monkeypatch.setattr(quantization, "SEQUENCES", 2)
    monkeypatch.setattr(loader, "SLAB_NBYTES", 40 * 4 * 64)
    rounded = {"blk.0.ffn_down.weight": "Q8_0"}
    source = tiny.write_gguf(tmp_path / "m.gguf", architecture, quantization="Q4_0", exceptions=rounded)
    report = quantize(source, tmp_path / "out", calibrate=calibrate)
    kernels = get_kernels()
    with open_checkpoint(source) as checkpoint, open_checkpoint(tmp_path / "out") as packed:
        assert packed.packed is not None
        model = load_model(checkpoint, PRECISIONS["int4"], kernels)
        wanted = model.weights.tensors
        for name in checkpoint.tensor_names():
            if not checkpoint.has_codes(name):
                continue
            exact, made = checkpoint.load(name), packed.load(name)
            if calibrate and name == "layers.0.gate_up":  # its rows are divided by the factors of `down`
                factors = packed.packed.vector("layers.0.down_channel_scale")
                assert factors.std() > 0
                made[len(factors) :] *= factors[:, None]
            else:
                np.testing.assert_array_equal(packed.packed.weight(name).data, wanted[name].data)
            assert np.linalg.norm(made - exact) < 0.005 * np.linalg.norm(exact), name
    assert report.kinds["qkv"].relative_rmse < 0.005 < 0.02 < report.kinds["down"].relative_rmse


@pytest.mark.parametrize("tied", [False, True])
def test_activations_that_overflow_are_an_error(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 2)
    model = tiny.tiny_model(tie_word_embeddings=tied)
    tensors = file_tensors(model, draw(model))
    tensors["model.layers.1.input_layernorm.weight"] = np.full(model.hidden_size, 1e19, np.float32)
    source = tiny.write_folder(tmp_path / "model", model, tensors=tensors)
    with pytest.raises(CheckpointError, match=f"inputs of {'lm_head' if tied else 'qkv'} overflow"):
        quantize(source, tmp_path / "out", calibrate=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_calibration_keeps_to_a_short_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SEQUENCES", 2)
    source = tiny.write_folder(tmp_path / "model", tiny.tiny_model(max_position_embeddings=300))
    assert quantize(source, tmp_path / "out", calibrate=True).calibration_tokens == 2 * 300
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.config.max_position_embeddings == 300


@pytest.mark.parametrize("token", [4294967295, 288])
def test_a_stop_token_that_does_not_exist_is_not_written(tmp_path: Path, token: int) -> None:
    """Neither folder could be read: the one that `quantize` writes, and the one in the packed cache."""
    source = tiny.write_gguf(tmp_path / "m.gguf", "qwen2", metadata={"tokenizer.ggml.eom_token_id": token})
    quantize(source, tmp_path / "out")
    with open_checkpoint(source) as checkpoint, open_checkpoint(tmp_path / "out") as packed:
        assert packed.config.eos_token_ids == checkpoint.config.eos_token_ids != ()
        assert packed.notes[1:] == ()


def test_calibration_is_the_default_of_small_models(source: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
    assert quantization.is_calibrated(config, None)
    assert not quantization.is_calibrated(config, False)
    large = replace(config, num_hidden_layers=100_000)
    assert not quantization.is_calibrated(large, None)
    assert quantization.is_calibrated(large, True)
    assert all(quantization.calibration_seconds(config, target) > 0 for target in ("int8", "int4"))


def test_report_of_exact_and_empty_weights() -> None:
    kind = KindError("int8")
    assert (kind.relative_rmse, kind.bits_per_weight) == (0.0, 0.0)
    kind.add(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), 8)
    assert (kind.relative_rmse, kind.bits_per_weight) == (0.0, 8.0)
    kind.add(np.full((1, 4), 2, np.float32), np.full((1, 4), 1, np.float32), 8)
    assert kind.relative_rmse == 0.5


def test_nothing_is_overwritten_by_accident(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize(source, out, "int4")
    before = files(out)
    with pytest.raises(InvalidRequestError, match="--force"):
        quantize(source, out, "int8")
    assert files(out) == before
    quantize(source, out, "int8", force=True)
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.packed is not None
        assert checkpoint.packed.precision.name == "int8"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidRequestError, match="not a packed checkpoint"):
        quantize(source, tmp_path / "mine", force=True)
    with pytest.raises(InvalidRequestError, match="holds the model"):
        quantize(source, source, force=True)
    with pytest.raises(InvalidRequestError, match="holds the model"):
        quantize(source, source.parent, force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (source / "model.safetensors").exists()


def test_what_cannot_be_quantized(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidRequestError, match="int8 or int4"):
        quantize(source, out, "fp32")
    quantize(source, out, "int8")
    with pytest.raises(InvalidRequestError, match="already packed"):
        quantize(out, tmp_path / "again", "int4")
    with pytest.raises(ModelNotFoundError), open_checkpoint(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "again").exists()


def test_a_full_disk_is_found_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(DiskFullError, match="are free"):
        quantize(source, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_no_trace(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glm4.loading.packed_folder.write_packed_config", fail)
    with pytest.raises(DiskFullError, match="no room left"):
        quantize(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import sys, time
from glm4.cli import main
from glm4.checkpoints import packed_writer
written = packed_writer.PackedWriter.write
def write(self, name, data):
    written(self, name, data)
    if name == "layers.1.o":
        self._file.flush()
        print("half", flush=True)
        time.sleep(60)
packed_writer.PackedWriter.write = write
main(["quantize", sys.argv[1], "--to", "int8", "-o", sys.argv[2], "--no-calibrate"])
"""


def test_kill_leaves_nothing_that_looks_finished(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(source), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    with pytest.raises(InvalidRequestError, match="another process is writing"):
        quantize(source, out)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not out.exists()
    assert partial_of(out).is_dir()
    quantize(source, out)
    assert not partial_of(out).exists()
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.packed is not None
        checkpoint.packed.verify_sha256()


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 64 MB checkpoint in slabs of 1 MB, from GGUF too, where gate and up are two tensors of the file."""
    monkeypatch.setattr(loader, "SLAB_NBYTES", 1 << 20)
    big: dict[str, Any] = {"hidden_size": 512, "vocab_size": 8000, "intermediate_size": 6000, "num_hidden_layers": 1}
    folder = tiny.write_folder(tmp_path / "folder", tiny.tiny_model(**big))
    gguf_file = tiny.write_gguf(tmp_path / "model.gguf", "chatglm", tiny.gguf_model("chatglm", **big))
    for path in (folder, gguf_file):
        with open_checkpoint(path) as checkpoint:
            checkpoint.load_rows("norm", 0, 1)
            tracemalloc.start()
            try:
                quantization.quantize(checkpoint, "int8", tmp_path / f"out-{path.name}", calibrate=False)
                assert tracemalloc.get_traced_memory()[1] < 24_000_000
            finally:
                tracemalloc.stop()


def test_atomic_folder_replaces_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()

    def fail() -> None:
        with atomic_folder(target) as partial:
            (partial / "new").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.name for file in target.iterdir()] == ["old"]
    with atomic_folder(target) as partial:
        (partial / "new").touch()
        assert [file.name for file in target.iterdir()] == ["old"]
    assert [file.name for file in target.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_atomic_folder_leaves_the_next_writers_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer deletes what it replaced, which takes a while, and another one begins meanwhile."""
    target = tmp_path / "target"
    target.mkdir()
    second = ExitStack()
    begun: list[Path] = []
    remove = atomic_folder_module._remove

    def slow_remove(path: Path) -> None:
        remove(path)
        if ".old-" in path.name and not begun:
            begun.append(second.enter_context(atomic_folder(target)))
            (begun[0] / "second").touch()

    monkeypatch.setattr(atomic_folder_module, "_remove", slow_remove)
    with atomic_folder(target) as partial:
        (partial / "first").touch()
    assert [file.name for file in target.iterdir()] == ["first"]
    second.close()
    assert [file.name for file in target.iterdir()] == ["second"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_atomic_folder_where_nothing_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidRequestError, match="cannot write"), atomic_folder(tmp_path / "a"):
        pass
    tmp_path.chmod(0o700)
