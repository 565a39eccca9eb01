"""LoRA adapters as GGUF: the factors of the file, applied to the tensors of the model's file, are our adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from exported import SOURCES, export, glm_folder, keys_of

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import interleave_rotary_rows, open_checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.errors import CheckpointError, InvalidRequestError, TensorError, UnsupportedModelError
from glm4.model.config import ModelConfig
from golden_models import Tensors
from tiny import write_gguf

GLM = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def llama_factors(config: ModelConfig, seed: int) -> Tensors:
    """With gate and up apart, as adapters of the starters have them."""
    made = factors(config, seed, GLM)
    for name in [name for name in made if ".gate_up_proj.lora_A" in name]:
        a, b = made.pop(name), made.pop(name.replace("lora_A", "lora_B"))
        for part, rows in zip(("gate_proj", "up_proj"), np.split(b, 2), strict=True):
            made[name.replace("gate_up_proj", part)] = a + (0.1 if part == "up_proj" else 0)
            made[name.replace("gate_up_proj", part).replace("lora_A", "lora_B")] = rows
    return made


def chatglm_factors(config: ModelConfig, seed: int) -> Tensors:
    """Under the names of the original layout, whose matrices are fused."""
    rng = np.random.default_rng(seed)
    shapes = {
        "self_attention.query_key_value": (config.qkv_size, config.hidden_size),
        "mlp.dense_4h_to_h": (config.hidden_size, config.intermediate_size),
    }
    made: Tensors = {}
    for layer in range(config.num_hidden_layers):
        for module, (rows, columns) in shapes.items():
            stem = f"base_model.model.transformer.encoder.layers.{layer}.{module}.lora_"
            made[stem + "A.weight"] = rng.standard_normal((4, columns)).astype(np.float32)
            made[stem + "B.weight"] = rng.standard_normal((rows, 4)).astype(np.float32)
    return made


def config_of(source: Path) -> tuple[ModelConfig, str]:
    with open_checkpoint(source) as checkpoint:
        return checkpoint.config, checkpoint.model_type


def deltas_of(file: Path) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each tensor of the model: alpha / rank times B A."""
    reader = gguf.GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    data = {tensor.name: np.array(gguf.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    found = {}
    for name in data:
        if name.endswith(".lora_a"):
            stem = name.removesuffix(".lora_a")
            a, b = data[name], data[stem + ".lora_b"]
            assert b.shape[1] == len(a)
            found[stem] = alpha / len(a) * (b @ a)
    assert len(data) == 2 * len(found)
    return found


def wanted(source: Path, adapter: Path) -> dict[tuple[int, str], np.ndarray]:
    """B A of each of our matrices."""
    config, model_type = config_of(source)
    with AdapterFile(adapter, config, model_type) as file:
        products = {site: file.load(*site) for site in file.shapes}
    return {site: b @ a for site, (a, b) in products.items()}


def joined(deltas: dict[str, np.ndarray], layer: int, key: str, config: ModelConfig, *, half_split: bool) -> np.ndarray:
    """What a file adds to one of our matrices, whose parts it may have apart."""
    apart = {"qkv": ("attn_q", "attn_k", "attn_v"), "gate_up": ("ffn_gate", "ffn_up")}.get(key, ())
    fused = {"qkv": "attn_qkv", "o": "attn_output", "gate_up": "ffn_up", "down": "ffn_down"}[key]
    stems = apart if apart and f"blk.{layer}.{apart[0]}.weight" in deltas else (fused,)
    rows = np.concatenate([deltas[f"blk.{layer}.{stem}.weight"] for stem in stems])
    if key == "qkv" and half_split:
        interleave_rotary_rows(rows, config)
    return rows


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 40, "k_proj": 3}}])
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "glm-tied"])
def test_the_file_adds_what_our_engine_adds(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "source")
    config, model_type = config_of(source)
    foreign = model_type in ("llama", "qwen2")
    made = llama_factors(config, 3) if foreign else factors(config, 3)
    names = (*GLM[:4], "gate_proj", "up_proj", "down_proj") if foreign else GLM
    adapter = write_adapter(tmp_path / "adapter", made, settings(names, **changes))
    report = export(source, tmp_path / "a.gguf", "f32", lora=adapter)
    assert report.nbytes == (tmp_path / "a.gguf").stat().st_size
    keys = keys_of(tmp_path / "a.gguf")
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    assert keys["general.architecture"] == {"glm": "chatglm"}.get(model_type, model_type)
    deltas, half_split = deltas_of(tmp_path / "a.gguf"), model_type == "qwen2"
    for (layer, key), product in wanted(source, adapter).items():
        found = joined(deltas, layer, key, config, half_split=half_split)
        np.testing.assert_allclose(found, product, rtol=1e-5, atol=1e-5)
    # every tensor that is adapted is one of the model's own file, with its shape
    if source.suffix == ".gguf":
        shapes = {tensor.name: tuple(tensor.shape[::-1]) for tensor in gguf.GGUFReader(source).tensors}
    else:
        export(source, tmp_path / "m.gguf", "f32")
        shapes = {tensor.name: tuple(tensor.shape[::-1]) for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {stem: delta.shape for stem, delta in deltas.items()} == {stem: shapes[stem] for stem in deltas}


@pytest.mark.parametrize("name", ["chatglm", "chatglm-half-split", "glm"])
def test_adapters_with_the_original_names(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "source")
    config, _ = config_of(source)
    names = ("query_key_value", "dense_4h_to_h")
    adapter = write_adapter(tmp_path / "adapter", chatglm_factors(config, 4), settings(names))
    export(source, tmp_path / "a.gguf", "f32", lora=adapter)
    deltas = deltas_of(tmp_path / "a.gguf")
    for (layer, key), product in wanted(source, adapter).items():
        np.testing.assert_allclose(joined(deltas, layer, key, config, half_split=False), product, rtol=1e-5, atol=1e-5)


def test_only_the_adapted_parts_of_a_divided_matrix_are_there(tmp_path: Path) -> None:
    """glm4 has q, k and v apart: an adapter of q alone does not bring zeros for the others; equal ranks, no scaling."""
    source = glm_folder(tmp_path / "m", architecture="glm4")
    config, _ = config_of(source)
    made = factors(config, 5, ("q_proj",))
    adapter = write_adapter(tmp_path / "adapter", made, settings(("q_proj",), lora_alpha=4))
    report = export(source, tmp_path / "a.gguf", "f32", lora=adapter)
    assert set(deltas_of(tmp_path / "a.gguf")) == {f"blk.{i}.attn_q.weight" for i in range(2)}
    assert report.tensors == 4
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    stem = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight.lora_a"], made[stem + "A.weight"])
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight.lora_b"], made[stem + "B.weight"])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_shorter_numbers(dtype: str, tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    config, _ = config_of(source)
    adapter = write_adapter(tmp_path / "adapter", factors(config, 6), settings())
    sizes = [export(source, tmp_path / f"{one}.gguf", one, lora=adapter).nbytes for one in ("f32", dtype)]
    assert sizes[1] < 0.6 * sizes[0]
    exact, short = (deltas_of(tmp_path / f"{one}.gguf") for one in ("f32", dtype))
    for name, delta in exact.items():
        assert np.abs(short[name] - delta).max() < 0.02 * np.abs(delta).max()


Breaks = Callable[[Path, ModelConfig], Path]


def _large(at: Path, config: ModelConfig) -> Path:
    made = factors(config, 1)
    made["base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"][0, 0] = 1e5
    return write_adapter(at, made, settings())


def _broken(at: Path, config: ModelConfig) -> Path:
    made = factors(config, 1)
    made["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = np.nan
    return write_adapter(at, made, settings())


@pytest.mark.parametrize(("make", "dtype", "error", "says"), [
    (lambda at, config: at, "f32", CheckpointError, "there is no adapter at"),
    (lambda at, config: write_adapter(at, factors(config, 1), settings()), "q8_0", InvalidRequestError, "may be f32"),
    (lambda at, config: write_adapter(at, factors(config, 1), settings(use_dora=True)), "f32", UnsupportedModelError,
     "use_dora"),
    (_large, "f16", InvalidRequestError, "more than float16"),
    (_broken, "f32", TensorError, "not finite"),
])  # fmt: skip
def test_what_is_refused(make: Breaks, dtype: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = make(tmp_path / "adapter", config_of(source)[0])
    (tmp_path / "a.gguf").write_bytes(b"old")
    with pytest.raises(error, match=says):
        export(source, tmp_path / "a.gguf", dtype, lora=adapter, force=True)
    assert (tmp_path / "a.gguf").read_bytes() == b"old"
    good = write_adapter(tmp_path / "good", factors(config_of(source)[0], 1), settings())
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(source, tmp_path / "a.gguf", "f32", lora=good)


def test_our_reader_names_an_adapter(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", "chatglm")
    adapter = write_adapter(tmp_path / "adapter", factors(config_of(source)[0], 1), settings())
    export(source, tmp_path / "a.gguf", "f32", lora=adapter)
    with pytest.raises(UnsupportedModelError, match="is not a model but a LoRA adapter"):
        open_checkpoint(tmp_path / "a.gguf")
