"""The quality benchmark: llama.cpp's plain formats against the gguf package, the off-grid model, the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality
import quality_formats as qf
import quality_model as qm
import quality_tensors as qt
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import PackedWeight, get_kernels
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS
from quality_picture import CHARACTER, LINE, label_places, picture, points_of
from tiny import tiny_model, write_folder

FP32 = PRECISIONS["fp32"]


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q5_0", "Q4_0"])
def test_plain_formats_equal_the_gguf_package(name: str) -> None:
    w = np.random.default_rng(3).standard_normal((16, 96), dtype=np.float32)
    w[2, :32] = 0.0
    kind = gguf.GGMLQuantizationType[name]
    np.testing.assert_array_equal(qf.PLAIN[name](w), gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind))


def test_recipes_fall_back_where_super_blocks_do_not_fit(tmp_path: Path) -> None:
    total = qf.Quantised()
    with open_checkpoint(write_folder(tmp_path / "m", tiny_model())) as checkpoint:
        tensors, config = qm.off_grid(checkpoint), checkpoint.config
    name = "layers.0.o"
    w = tensors.load(name)
    made = qf.llama_cpp("Q4_K_S", config, None, False, total)(name, w)
    np.testing.assert_array_equal(made, qf.q5_0(w))
    assert total.bits_per_weight == 5.5
    kinds = {
        (recipe, name): qf.gguf_type(recipe, name, part, config)
        for recipe in ("Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M")
        for name, part in (("embed_tokens", "embed_tokens"), ("lm_head", "lm_head"), ("layers.0.qkv", "q"))
    }
    assert [kinds["Q4_K_M", name] for name in ("embed_tokens", "lm_head", "layers.0.qkv")] == ["Q4_K", "Q6_K", "Q4_K"]
    assert [kinds["Q5_K_M", name] for name in ("embed_tokens", "lm_head", "layers.0.qkv")] == ["Q5_K", "Q6_K", "Q5_K"]
    assert [kinds["Q4_0", name] for name in ("embed_tokens", "lm_head", "layers.0.qkv")] == ["Q4_0", "Q6_K", "Q4_0"]
    assert {kinds["Q8_0", name] for name in ("embed_tokens", "lm_head", "layers.0.qkv")} == {"Q8_0"}
    padded = qf.llama_cpp("Q4_K_S", config, None, True, total)
    with pytest.raises(SystemExit, match="--llama"):
        padded(name, w)


@pytest.mark.parametrize("layout", ["chatglm", "hf"])
def test_off_grid_moves_every_matrix_and_not_the_function(tmp_path: Path, layout: str) -> None:
    kernels = get_kernels()
    ids = np.arange(40, dtype=np.int32) * 5 % 250
    with open_checkpoint(write_folder(tmp_path / "m", tiny_model(layout))) as checkpoint:  # type: ignore[arg-type]
        before = load_model(checkpoint, FP32, kernels)
        moved = qm.off_grid(checkpoint, seed=1)
        for name in checkpoint.tensor_names():
            if len(checkpoint.shape(name)) == 2 and name != "embed_tokens":
                assert not np.allclose(moved.load(name), checkpoint.load(name), rtol=0.01), name
        for _ in range(2):  # written, then found
            kept = qm.kept_off_grid(checkpoint, 1, tmp_path / "kept")
    assert kept.tensor_names() == moved.tensor_names()
    for name in moved.tensor_names():
        np.testing.assert_array_equal(kept.load(name), moved.load(name))
    after = load_model(moved, FP32, kernels)
    np.testing.assert_array_equal(
        qm.hidden_by_layer(moved, ids[:32], 16, kernels), qm.hidden_states(after, ids, 16)[:32]
    )
    expected = before.logits(qm.hidden_states(before, ids, 16))
    actual = after.logits(qm.hidden_states(after, ids, 16))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


def test_a_calibrated_model_is_made_once_by_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = get_kernels()
    with open_checkpoint(write_folder(tmp_path / "m", tiny_model())) as checkpoint:
        tensors = qm.off_grid(checkpoint)
    ids = np.random.default_rng(0).integers(0, 250, (2, 64)).astype(np.int32)
    calls = []

    def make() -> qm.Packed:
        calls.append(1)
        return qm.packed_model("int4-cal", tensors, kernels, lambda: ids)

    made = make()
    for kept in [qm.kept_packed("int4", tmp_path, make) for _ in range(2)]:
        assert kept.keys() == made.keys()
        for name, value in made.items():
            if isinstance(value, PackedWeight):
                other = kept[name]
                assert isinstance(other, PackedWeight)
                assert (other.format, other.rows, other.cols) == (value.format, value.rows, value.cols)
                np.testing.assert_array_equal(other.data, value.data)
            else:
                np.testing.assert_array_equal(kept[name], value)
    assert len(calls) == 2
    monkeypatch.setattr(qm, "_code_digest", lambda: "changed")
    qm.kept_packed("int4", tmp_path, make)
    assert len(calls) == 3


def test_scores_of_equal_and_of_rounded_models(tmp_path: Path) -> None:
    kernels = get_kernels()
    ids = np.random.default_rng(0).integers(0, 250, 2 * quality.SEQUENCE).astype(np.int32)
    with open_checkpoint(write_folder(tmp_path / "m", tiny_model())) as checkpoint:
        tensors = qm.off_grid(checkpoint)

    def pack(base: str) -> qm.Packed:
        return qm.packed_model(base, tensors, kernels, lambda: ids.reshape(2, -1))

    contenders = []
    for name in ("fp32", "int8", "int8-cal", "int4", "int4+a8", "int4-cal", "int4-cal+a8"):
        source, total = quality.build(name, tensors, None, kernels, pack)
        contenders.append(quality.Contender.of(name, total.bits_per_weight, *quality.run_model(source, ids, kernels)))
    scores = quality.score(contenders[0], contenders, ids, kernels)
    same, int8, int8_calibrated, int4, int4_a8, calibrated, calibrated_a8 = scores
    assert same.kld == pytest.approx(0.0, abs=1e-7)
    assert same.top1 == 1.0
    assert same.ppl_ratio == pytest.approx(1.0)
    assert 0 < int8.kld < int4.kld / 20
    assert int4.kld < int4_a8.kld * 1.5
    assert int8.top1 > int4.top1
    assert int8_calibrated.kld < int8.kld
    assert int8_calibrated.bits_per_weight == int8.bits_per_weight
    assert calibrated.kld < int4.kld
    assert calibrated_a8.kld < int4_a8.kld
    assert int4.bits_per_weight <= calibrated.bits_per_weight == calibrated_a8.bits_per_weight
    assert "| int4+a8 |" in quality.table([same, int8, int4, int4_a8])


def test_labels_of_a_crowded_picture_do_not_overlap() -> None:
    names = [f"format-{i}" for i in range(12)]
    dots = [(300.0 + i % 3, 200.0 + i) for i in range(12)]
    boxes = [
        (x, y - LINE + 3, x + CHARACTER * len(n), y + 3)
        for n, (x, y) in zip(names, label_places(names, dots), strict=True)
    ]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_tensor_errors_are_relative_to_all_weights_of_a_kind() -> None:
    rng = np.random.default_rng(4)
    names = ("layer.0.attention.q", "layer.0.output.x")
    tensors = {name: rng.standard_normal((32, 64), dtype=np.float32) for name in names}
    header: dict[str, object] = {}
    data = b""
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": [32, 64], "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    text = json.dumps({"__metadata__": {}, **header}).encode()
    read = list(qt.matrices(len(text).to_bytes(8, "little") + text + data))
    assert [name for name, _ in read] == list(tensors)
    found = qt.errors(read, {"half": lambda w: w * np.float32(0.5), "Q4_0": qf.q4_0})
    assert list(found) == ["attention", "ffn out", "all"]
    assert found["all"]["half"] == pytest.approx(0.5)
    assert found["attention"]["Q4_0"] > 0.05


def test_picture_is_a_drawing_of_every_point() -> None:
    root = ElementTree.fromstring(picture([("q4_0", 4.5, 0.06), ("int4 <new>", 4.53, 0.04), ("int8", 8.1, 0.0006)]))
    assert len(root.findall(".//{*}circle")) == 3
    assert "int4 <new>" in {text.text for text in root.findall(".//{*}text")}


def test_a_picture_of_several_runs_is_over_the_same_tokens(tmp_path: Path) -> None:
    def run(name: str, digest: str, **formats: float) -> Path:
        scores = [{"format": key, "bits_per_weight": 8.0, "kld": kld} for key, kld in formats.items()]
        path = tmp_path / name
        path.write_text(json.dumps({"ids_sha256": digest, "scores": scores}), encoding="utf-8")
        return path

    first, second = run("a.json", "1", int8=0.5, q8_0=0.2), run("b.json", "1", int8=0.1)
    assert points_of([first, second]) == [("int8", 8.0, 0.1), ("q8_0", 8.0, 0.2)]
    with pytest.raises(SystemExit, match="different tokens"):
        points_of([first, run("c.json", "2", int8=0.1)])
