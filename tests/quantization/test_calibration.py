"""Layer-by-layer calibration: the sums of inputs, the states carried along, and the text it is done on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.loading import weights as loader
from glm4.loading.weights import CanonicalTensors, load_model
from glm4.model.precision import PRECISIONS
from glm4.model.tensors import matrix_shapes, model_tensors
from glm4.quantization import calibration, layer_rounder
from glm4.quantization.calibration import calibrated, exact_inputs, run_layer
from glm4.quantization.calibration_text import PROMPTS, SEQUENCE, calibration_text, prompt_ids
from glm4.quantization.layer_rounder import LayerRounder, output_error
from glm4.quantization.rounding import damping_for, round_compensated
from glm4.requests.processor import Processor
from model_driver import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality_text

Float = NDArray[np.float32]
IDS = np.random.default_rng(1).integers(0, 250, (3, 40)).astype(np.int32)


class Watched:
    """Kernels that keep what goes through `linear`."""

    def __init__(self) -> None:
        self.kernels = get_kernels()
        self.inputs: list[NDArray[np.float32]] = []
        self.outputs: list[NDArray[np.float32]] = []

    def linear(self, x: NDArray[np.float32], weight: PackedWeight, bias: NDArray[np.float32] | None = None) -> object:
        self.inputs.append(x.copy())
        self.outputs.append(self.kernels.linear(x, weight, bias))
        return self.outputs[-1].copy()

    def __getattr__(self, name: str) -> object:
        return getattr(self.kernels, name)


def layer_of(checkpoint: CanonicalTensors, index: int) -> dict[str, Float]:
    names = [name for name in checkpoint.tensor_names() if name.startswith(f"layers.{index}.")]
    return {name.split(".")[-1]: checkpoint.load(name) for name in names}


def in_float32(layer: Mapping[str, Float]) -> dict[str, PackedWeight | Float]:
    return {name: get_kernels().pack("fp32", t) if t.ndim == 2 else t for name, t in layer.items()}


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_inputs_are_those_of_a_direct_forward_pass(tmp_path: Path, architecture: str) -> None:
    """The layers one by one, a sequence at a time, against the whole model watched from outside."""
    kernels, watched = get_kernels(), Watched()
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model(architecture=architecture))) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["fp32"], watched)  # type: ignore[arg-type]
        config = checkpoint.config
        session = Session(model, [IDS.shape[1]] * len(IDS), "fp32")
        expected_hidden = session.hidden(dict(enumerate(IDS)))
        inputs, outputs = ([x.reshape(-1, x.shape[-1]) for x in kept] for kept in (watched.inputs, watched.outputs))
        hidden = kernels.embedding(model.weights.embed_tokens, IDS.reshape(-1)).reshape(*IDS.shape, -1)
        for i in range(config.num_hidden_layers):
            found, attended = exact_inputs(config, in_float32(layer_of(checkpoint, i)), hidden, kernels)
            assert list(found) == list(matrix_shapes(config))
            for x, wanted in zip(
                [*found.values(), attended], [*inputs[4 * i : 4 * i + 4], outputs[4 * i + 1]], strict=True
            ):
                np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
    np.testing.assert_allclose(hidden, np.stack(list(expected_hidden.values())), rtol=1e-4, atol=1e-4)


def corrected(weight: Float, exact: Float, x: Float, lag: Float | None) -> NDArray[np.float64]:
    """An oracle in float64: the M with the least |M x' - (W x + lag)|^2 + d |M - W|^2, summed over tokens."""
    w, x64 = weight.astype(np.float64), x.astype(np.float64)
    hessian = x64.T @ x64
    ridge = damping_for(*x.shape) * np.diagonal(hessian).mean() * np.eye(len(hessian))
    wanted = exact.astype(np.float64) @ w.T + (0 if lag is None else lag)
    return np.asarray(np.linalg.solve(hessian + ridge, x64.T @ wanted + ridge @ w.T).T)


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_matrices_are_corrected_for_what_their_inputs_lost(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix, before it is rounded, is the least squares solution over the rounded model's inputs."""
    kernels, targets = get_kernels(), []
    monkeypatch.setattr(layer_rounder, "TOKENS_PER_COLUMN", 0.5)

    def noted(format: str, weight: Float, *rest: Any) -> PackedWeight:
        targets.append(weight)
        return round_compensated(format, weight, *rest)

    monkeypatch.setattr(layer_rounder, "round_compensated", noted)
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model(architecture=architecture))) as checkpoint:
        config, tensors = checkpoint.config, layer_of(checkpoint, 1)
        exact = checkpoint.load("embed_tokens")[IDS]
    noise = np.random.default_rng(3).standard_normal(exact.shape, dtype=np.float32)
    hidden = exact + noise * exact.std() * np.float32(0.2)
    lag = (exact - hidden).reshape(-1, config.hidden_size)
    inputs, attended = exact_inputs(config, in_float32(tensors), exact.copy(), kernels)
    plain = architecture == "glm"
    rounder = LayerRounder(
        "int4", kernels, tensors, dict(inputs), attended if plain else None, lag.copy(), lambda name: None
    )
    watched = Watched()
    watched.kernels = rounder
    run_layer(config, tensors, hidden, watched, 10_000)  # type: ignore[arg-type]
    assert not rounder.inputs
    after_attention = lag + attended - watched.outputs[1]
    lags = [None, lag, None, after_attention] if plain else [None] * 4
    for name, target, x, missing in zip(matrix_shapes(config), targets, watched.inputs, lags, strict=True):
        wanted = corrected(tensors[name], inputs[name], x, missing)
        np.testing.assert_allclose(target, wanted, rtol=0, atol=2e-4 * float(np.abs(wanted).max()))
        assert np.abs(wanted - tensors[name]).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(("tokens_per_column", "corrects"), [(1, True), (1000, False)])
def test_little_text_corrects_nothing(
    tmp_path: Path, tokens_per_column: float, corrects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noted(product: Float, hessian: Float, damping: float) -> Float:
        asked.append(len(hessian))
        return np.zeros_like(product)

    monkeypatch.setattr(layer_rounder, "ridge", noted)
    monkeypatch.setattr(calibration, "ridge", noted)
    monkeypatch.setattr(layer_rounder, "TOKENS_PER_COLUMN", tokens_per_column)
    ids = np.random.default_rng(6).integers(0, 250, (20, 40)).astype(np.int32)
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model())) as checkpoint:
        list(calibrated(checkpoint, "int4", ids, get_kernels()))
        matrices = 4 * checkpoint.config.num_hidden_layers + 1
    assert len(asked) == (matrices if corrects else 0)


def test_correction_brings_outputs_closer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states on other text, against the exact model's."""
    kernels, other = get_kernels(), np.random.default_rng(7).integers(0, 250, (4, 40)).astype(np.int32)
    ids = np.random.default_rng(6).integers(0, 250, (40, 40)).astype(np.int32)
    distances = []
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model())) as checkpoint:
        config = checkpoint.config
        layers = [layer_of(checkpoint, i) for i in range(config.num_hidden_layers)]
        exact = checkpoint.load("embed_tokens")[other]
        for layer in layers:
            run_layer(config, in_float32(layer), exact, kernels)
        for formats in ((), ("int4",)):
            monkeypatch.setattr(layer_rounder, "CORRECTED", formats)
            parts = {part.name: part for part in calibrated(checkpoint, "int4", ids, kernels)}
            values = {
                name: part.source if part.packed is None else kernels.unpack(part.packed)
                for name, part in parts.items()
            }
            hidden = values["embed_tokens"][other]
            for i in range(config.num_hidden_layers):
                prefix = f"layers.{i}."
                layer = {name.removeprefix(prefix): t for name, t in values.items() if name.startswith(prefix)}
                run_layer(config, in_float32(layer), hidden, kernels)
            distances.append(float(np.square(hidden - exact).mean()))
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_parts_come_in_order_and_in_slabs(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = get_kernels()
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model())) as checkpoint:
        whole = list(calibrated(checkpoint, format, IDS, kernels))
        monkeypatch.setattr(loader, "SLAB_NBYTES", 40 * 4 * 64)  # one row block a slab
        parts = list(calibrated(checkpoint, format, IDS, kernels))
        expected = list(model_tensors(checkpoint.config, {"channel_scales": True}))
        assert [part.name for part in whole] == expected
        assert list(dict.fromkeys(part.name for part in parts)) == expected
    assert len(parts) > len(whole)
    for part in whole:
        pieces = [p for p in parts if p.name == part.name]
        assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
        if part.packed is not None:
            assert part.packed.format == format
            # Not bit for bit: a matrix product of other shape sums up in another order, and a tie may fall otherwise.
            restored = np.concatenate([kernels.unpack(p.packed) for p in pieces if p.packed is not None])
            errors = [np.square(q - part.source).sum() for q in (restored, kernels.unpack(part.packed))]
            assert errors[0] == pytest.approx(errors[1], rel=0.02)
            np.testing.assert_array_equal(np.concatenate([p.source for p in pieces]), part.source)
        assert (part.output_error is None) == (part.packed is None or part.name == "embed_tokens")


def test_output_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((64, 48), dtype=np.float32), rng.standard_normal((200, 48), dtype=np.float32)
    packed = get_kernels().pack("int4", w)
    rows = slice(None, None, 16)
    exact, rounded = x @ w[rows].T, x @ get_kernels().unpack(packed)[rows].T
    error, norm = output_error(w, packed, x.T @ x, get_kernels())
    assert error == pytest.approx(float(np.square(rounded - exact).sum()), rel=1e-3)
    assert norm == pytest.approx(float(np.square(exact).sum()), rel=1e-3)


def test_calibration_text_is_written_by_the_model(tmp_path: Path) -> None:
    steps: list[float] = []
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model())) as checkpoint:
        text = Processor.load(checkpoint)
        ids = calibration_text(checkpoint, text, 2, lambda stage, done, total: steps.append(done))
        again = calibration_text(checkpoint, text, 2)
        seed, first = next(prompt_ids(text))
    assert ids.shape == (2, SEQUENCE)
    assert steps[-1] == ids.size
    np.testing.assert_array_equal(ids, again)
    assert seed == 0
    assert ids[0, : len(first)].tolist() == first[:SEQUENCE]


def test_no_prompt_of_the_benchmark_is_calibrated_on() -> None:
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    ours = {*prompts["chat"], *prompts["open"]}
    assert len(ours) == len(prompts["chat"]) + len(prompts["open"])
    assert not ours & set(quality_text.PROMPTS)
    # Nor is the file among the documents and sources whose text quality is measured on.
    for patterns in quality_text.SOURCES.values():
        for pattern in patterns:
            assert PROMPTS not in quality_text.REPOSITORY.glob(pattern)
