"""Layer-by-layer calibration: the sums of inputs, the states carried along, and the text it is done on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.model import loader
from glm4.model.loader import load_model
from glm4.model.precision import PRECISIONS
from glm4.model.weights.checkpoint import open_checkpoint
from glm4.model.weights.names import map_tensors
from glm4.quantization.calibration import (
    MATRICES,
    calibrated,
    head_input_sum,
    layer_input_sums,
    output_error,
    run_layer,
)
from glm4.quantization.calibration_text import PROMPTS, SEQUENCE, calibration_text, prompt_ids
from glm4.text_side import TextSide
from model_driver import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality_text

IDS = np.random.default_rng(1).integers(0, 250, (3, 40)).astype(np.int32)


class Watched:
    """Kernels that keep what goes through `linear`."""

    def __init__(self) -> None:
        self.kernels = get_kernels()
        self.inputs: list[NDArray[np.float32]] = []

    def linear(self, x: NDArray[np.float32], weight: PackedWeight, bias: NDArray[np.float32] | None = None) -> object:
        self.inputs.append(x.copy())
        return self.kernels.linear(x, weight, bias)

    def __getattr__(self, name: str) -> object:
        return getattr(self.kernels, name)


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_sums_are_those_of_a_direct_forward_pass(tmp_path: Path, architecture: str) -> None:
    """The layers one by one, against the whole model watched from outside."""
    kernels, watched = get_kernels(), Watched()
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model(architecture=architecture))) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["fp32"], watched)  # type: ignore[arg-type]
        config = checkpoint.config
        session = Session(model, [IDS.shape[1]] * len(IDS), "fp32")
        expected_hidden = session.hidden(dict(enumerate(IDS)))
        count = config.num_hidden_layers
        expected = [x.reshape(-1, x.shape[-1]) for x in watched.inputs[: 4 * count]]
        hidden = kernels.embedding(model.weights.embed_tokens, IDS.reshape(-1)).reshape(*IDS.shape, -1)
        for i in range(count):
            names = [n for n in checkpoint.tensor_names() if n.startswith(f"layers.{i}.")]
            tensors = {n.split(".")[-1]: checkpoint.load(n) for n in names}
            layer = {n: kernels.pack("fp32", t) if t.ndim == 2 else t for n, t in tensors.items()}
            before = hidden.copy()
            sums = layer_input_sums(config, layer, hidden, kernels)
            np.testing.assert_array_equal(hidden, before)
            for name, x in zip(MATRICES, expected[4 * i : 4 * i + 4], strict=True):
                np.testing.assert_allclose(sums[name], x.T @ x, rtol=1e-4, atol=1e-4 * float(np.square(x).sum(0).max()))
            run_layer(config, layer, hidden, kernels)
    found = np.stack([expected_hidden[i] for i in range(len(IDS))])
    np.testing.assert_allclose(hidden, found, rtol=1e-4, atol=1e-4)
    x = kernels.rms_norm(found.reshape(-1, config.hidden_size), model.weights.norm, config.rms_norm_eps)
    total = head_input_sum(config, model.weights.norm, hidden, kernels)
    np.testing.assert_allclose(total, x.T @ x, rtol=1e-3, atol=1e-3 * float(total.max()))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_parts_come_in_order_and_in_slabs(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = get_kernels()
    with open_checkpoint(tiny.write_folder(tmp_path / "m", tiny.tiny_model())) as checkpoint:
        whole = list(calibrated(checkpoint, format, IDS, kernels))
        monkeypatch.setattr(loader, "SLAB_NBYTES", 40 * 4 * 64)  # one row block a slab
        parts = list(calibrated(checkpoint, format, IDS, kernels))
        expected = list(map_tensors(checkpoint.config, "packed", (), channel_scales=True).recipes)
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
        text = TextSide.load(checkpoint)
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
