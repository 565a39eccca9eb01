"""Channels rescaled before calibrated rounding: the same function, and LoRA adapters that still fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import tiny
from adapter_files import factors, settings, write_adapter
from glm4 import LLM
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.packed_format import packed_shapes
from glm4.kernels import get_kernels
from glm4.loading.lora import read_adapter
from glm4.loading.weights import load_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.layers import ModelWeights
from glm4.model.lora import LoraAdapter
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.quantization import checkpoint as quantization
from glm4.quantization.calibration import exact_inputs
from glm4.quantization.channel_scales import channel_scales, rescale_layer
from packing import CHANNEL_SCALES

Float = NDArray[np.float32]
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
RESCALED = ["qkv", "gate_up", "down"]
MATRICES = ["qkv", "o", "gate_up", "down"]
SCALE = 0.18  # of adapters' factors: they move the logits by more than their standard deviation
IDS = np.random.default_rng(1).integers(0, 250, (3, 40)).astype(np.int32)


def unequal(count: int, seed: int) -> Float:
    """Factors, most of them between 1/3 and 3, a few beyond 1/10 and 10."""
    return np.exp(np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def uneven(tensors: gm.Tensors, norms: tuple[str, str], up: str) -> gm.Tensors:
    """The same tensors with strongly unequal channels.

    Args:
        norms: ends of the names of the two norms before qkv and gate_up.
        up: end of the name of the matrix whose last rows are the up half.
    """
    made = {}
    for seed, (name, value) in enumerate(tensors.items()):
        value = value.copy()
        if name.endswith(norms):
            value *= unequal(len(value), seed)
        if name.endswith(up):
            half = len(value) // 2 if "gate_up" in up else 0
            value[half:] *= unequal(len(value) - half, seed)[:, None]
        made[name] = value
    return made


def write_source(folder: Path, kind: str) -> Path:
    """A tiny model with unequal channels: "llama" (seven projections, GGUF), "glm" or "glm4" (fused ones)."""
    if kind == "llama":
        model = tiny.gguf_model("llama")
        tensors = uneven(tiny.gguf_tensors(model, "llama"), ("attn_norm.weight", "ffn_norm.weight"), "ffn_up.weight")
        return tiny.write_gguf(folder / "m.gguf", "llama", model, tensors=tensors)
    model = tiny.tiny_model(architecture=kind, attention_bias=kind == "glm")
    tensors = gm.file_tensors(model, gm.draw(model))
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    return tiny.write_folder(folder / "m", model, tensors=uneven(tensors, norms, "gate_up_proj.weight"))


def write_random_adapter(folder: Path, config: Any, kind: str) -> Path:
    """An adapter on every projection: seven of a Llama, six of a GLM."""
    if kind != "llama":
        return write_adapter(folder, factors(config, 3, FUSED, scale=SCALE), settings(FUSED))
    rng = np.random.default_rng(3)
    hidden, ffn, query, keys = config.hidden_size, config.intermediate_size, config.query_size, config.key_value_size
    inside = [(query, hidden), (keys, hidden), (keys, hidden), (hidden, query)]
    shapes = dict(zip(SEVEN, [*inside, (ffn, hidden), (ffn, hidden), (hidden, ffn)], strict=True))
    tensors: gm.Tensors = {}
    for layer in range(config.num_hidden_layers):
        for target, (rows, columns) in shapes.items():
            part = "self_attn" if target in SEVEN[:4] else "mlp"
            stem = f"base_model.model.model.layers.{layer}.{part}.{target}.lora_"
            tensors[stem + "A.weight"] = (SCALE * rng.standard_normal((4, columns))).astype(np.float32)
            tensors[stem + "B.weight"] = (SCALE * rng.standard_normal((rows, 4))).astype(np.float32)
    return write_adapter(folder, tensors, settings(SEVEN))


def logits(model: Transformer, adapter: LoraAdapter | None) -> Float:
    """Logits [40, V] of the first sequence of IDS under an adapter."""
    pages = pages_for(IDS.shape[1])
    batch = ForwardBatch.build([list(range(pages))], [0], [IDS.shape[1]], (adapter,))
    return model.logits(model.forward(IDS[0], batch, KVCache(model.config, pages, "fp32")))


def difference(found: Float, expected: Float) -> float:
    """Root mean square, as a share of the standard deviation of what is expected."""
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


@pytest.mark.parametrize("kind", ["llama", "glm", "glm4"])
def test_the_function_of_a_layer_is_unchanged(tmp_path: Path, kind: str) -> None:
    kernels = get_kernels()
    with open_checkpoint(write_source(tmp_path, kind)) as checkpoint:
        config = checkpoint.config
        names = [name for name in checkpoint.tensor_names() if name.startswith("layers.1.")]
        tensors = {name.removeprefix("layers.1."): checkpoint.load(name) for name in names}
        hidden = checkpoint.load("embed_tokens")[IDS.reshape(-1)].reshape(*IDS.shape, -1)

    def packed() -> dict[str, Any]:
        return {name: kernels.pack("fp32", t) if t.ndim == 2 else t for name, t in tensors.items()}

    before, original = packed(), dict(tensors)
    outputs = [hidden.copy(), hidden.copy()]
    unscaled, _ = exact_inputs(config, before, outputs[0], kernels)
    rescale_layer(tensors, {name: np.square(x).sum(axis=0) for name, x in unscaled.items()}, 0.4)
    rescaled, _ = exact_inputs(config, packed(), outputs[1], kernels)
    for name, x in rescaled.items():
        wanted = unscaled[name] / tensors.get(name + "_channel_scale", 1)
        np.testing.assert_allclose(x, wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    assert tensors.keys() - original.keys() == set(CHANNEL_SCALES)
    assert [name for name in MATRICES if not np.array_equal(tensors[name], original[name])] == RESCALED
    for name in RESCALED:
        spread, less = (float(np.log(np.square(x).sum(axis=0)).std()) for x in (unscaled[name], rescaled[name]))
        assert less < 0.8 * spread


def test_scales_of_silent_and_loud_channels() -> None:
    energy = np.array([0, 1e-12, 1, 4, 1e12], np.float32)
    scales = channel_scales(energy, 0.5)
    assert scales.dtype == np.float32
    assert scales[0] == scales[1] == 1 / 8
    assert scales[4] == 8
    assert scales[3] / scales[2] == pytest.approx(2**0.5)
    np.testing.assert_array_equal(channel_scales(np.zeros(3, np.float32), 0.5), np.ones(3))
    np.testing.assert_array_equal(channel_scales(energy, 0), np.ones(5))


@pytest.mark.parametrize("kind", ["llama", "glm4"])
def test_an_adapter_fits_exactly_but_for_rounding(tmp_path: Path, kind: str) -> None:
    """The rescaled model in float32, so that nothing hides a factor that is a little wrong."""
    kernels = get_kernels()
    with open_checkpoint(write_source(tmp_path, kind)) as checkpoint:
        config, model_type = checkpoint.config, checkpoint.model_type
        exact = load_model(checkpoint, PRECISIONS["fp32"], kernels)
        whole = {name: checkpoint.load(name) for name in checkpoint.tensor_names()}
    for i in range(config.num_hidden_layers):
        prefix = f"layers.{i}."
        layer = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
        rescale_layer(layer, {key: unequal(layer[key].shape[1], i) ** 2 for key in MATRICES}, 0.5)
        whole |= {prefix + name: value for name, value in layer.items()}
    tensors = {name: kernels.pack("fp32", value) if value.ndim == 2 else value for name, value in whole.items()}
    model = Transformer(config, ModelWeights(tensors), kernels)
    path = write_random_adapter(tmp_path / "adapter", config, kind)
    options: dict[str, Any] = {"format": "fp32", "max_nbytes": 1 << 30}
    plain = read_adapter(path, config, model_type, kernels, layers=(), **options)
    fitted = read_adapter(path, config, model_type, kernels, layers=model.weights.layers, **options)
    expected = logits(exact, plain)
    assert difference(logits(model, fitted), expected) < 1e-4
    assert difference(logits(model, plain), expected) > 0.1


@pytest.mark.parametrize("kind", ["llama", "glm", "glm4"])
def test_an_adapter_fits_the_quantised_model(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised to int8 with calibration, under an adapter on every projection: close to float32 under it.

    Factors that were not rescaled, wholly or for one kind of matrix, are far off.
    """
    monkeypatch.setattr(quantization, "SEQUENCES", 2)
    kernels, source = get_kernels(), write_source(tmp_path, kind)
    with open_checkpoint(source) as checkpoint:
        config, model_type = checkpoint.config, checkpoint.model_type
        quantization.quantize(checkpoint, "int8", tmp_path / "int8", calibrate=True)
        exact = load_model(checkpoint, PRECISIONS["fp32"], kernels)
    path = write_random_adapter(tmp_path / "adapter", config, kind)
    plain = read_adapter(path, config, model_type, kernels, format="fp32", max_nbytes=1 << 30, layers=())
    expected = logits(exact, plain)
    with LLM(str(tmp_path / "int8"), max_model_len=64, max_num_seqs=1) as llm:
        model: Transformer = llm.backend.model  # type: ignore[attr-defined]
        llm.load_adapter("mine", str(path))
        fitted: LoraAdapter = llm.backend.engine.adapters.get("mine")  # type: ignore[attr-defined]
        own = difference(logits(model, None), logits(exact, None))
        close = difference(logits(model, fitted), expected)
        assert difference(logits(exact, None), expected) > 1
        assert close < 0.1
        assert close < 1.5 * own
        assert difference(logits(model, plain), expected) > 0.5
        for key in RESCALED:
            mixed = {site: (plain if site[1] == key else fitted).factors[site] for site in fitted.factors}
            assert difference(logits(model, LoraAdapter(mixed)), expected) > 3 * close, key
        names = model.weights.tensors.keys()
    assert names == packed_shapes(config, {"channel_scales": True}).keys()


def test_plain_rounding_has_no_scales(tmp_path: Path) -> None:
    with open_checkpoint(write_source(tmp_path, "glm")) as checkpoint:
        quantization.quantize(checkpoint, "int8", tmp_path / "int8", calibrate=False)
    with open_checkpoint(tmp_path / "int8") as packed:
        model = load_model(packed, PRECISIONS["int8"], get_kernels())
        assert not [name for name in packed.tensor_names() if name.endswith(CHANNEL_SCALES)]
    assert all(layer.down_channel_scale is None for layer in model.weights.layers)
    assert "channel_scales" not in (tmp_path / "int8" / "config.json").read_text()


@pytest.mark.parametrize("quantization_type", ["Q4_1", "Q8_0"])
def test_int4_keeps_what_is_4_bits_already(
    tmp_path: Path, quantization_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of matrices that lie on a grid of 4 bits are not rescaled, which would take them off it."""
    monkeypatch.setattr(quantization, "SEQUENCES", 1)
    file = tiny.write_gguf(tmp_path / "m.gguf", "llama", quantization=quantization_type)
    with open_checkpoint(file) as checkpoint:
        report = quantization.quantize(checkpoint, "int4", tmp_path / "int4", calibrate=True)
    with open_checkpoint(tmp_path / "int4") as packed:
        scales = [packed.load(f"layers.1.{name}") for name in CHANNEL_SCALES]
    if quantization_type == "Q4_1":
        assert all((scale == 1).all() for scale in scales)
        assert all(report.kinds[name].relative_rmse < 0.01 for name in MATRICES)
    else:
        assert all(np.ptp(scale) > 0.1 for scale in scales)
        assert all(report.kinds[name].relative_rmse > 0.03 for name in MATRICES)
