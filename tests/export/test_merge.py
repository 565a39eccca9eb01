"""A model with an adapter folded in computes what base and adapter do; what cannot be merged is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import SOURCES, export, glm_folder
from test_gguf_lora import GLM, chatglm_factors, config_of, llama_factors

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.errors import CheckpointError, InvalidRequestError, TensorError, UnsupportedModelError
from glm4.export.merge import MergeReport, merge
from glm4.export.merge_check import check_matrices
from glm4.export.merged import open_for_merging
from glm4.model.config import ModelConfig
from glm4.quantization.checkpoint import quantize
from glm4.variants import VARIANTS, get_variant
from golden_models import Tensors
from tiny import write_folder


def merged(source: Path, adapter: Path, out: Path, **options: Any) -> MergeReport:
    with open_checkpoint(source) as checkpoint:
        return merge(checkpoint, adapter, out, **{"dtype": "fp32", **options})


def adapter_for(source: Path, folder: Path, *, seed: int = 3, **changes: Any) -> Path:
    """Of every matrix, with the modules that the model's class has."""
    config, model_type = config_of(source)
    foreign = model_type in ("llama", "qwen2")
    made = small(llama_factors(config, seed) if foreign else factors(config, seed))
    names = (*GLM[:4], "gate_proj", "up_proj", "down_proj") if foreign else GLM
    if changes.get("use_dora"):
        made |= magnitudes(made, seed)
    return write_adapter(folder, made, settings(names, **changes))


def small(made: Tensors) -> Tensors:
    """A third of each: larger ones make the tiny models so steep that sums in another order differ by 1e-5."""
    return {name: 0.3 * values for name, values in made.items()}


def magnitudes(made: Tensors, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    names = [name for name in made if name.endswith("lora_B.weight")]
    return {
        name.replace("B.weight", "magnitude_vector"): rng.uniform(0.5, 2, len(made[name])).astype(np.float32)
        for name in names
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True, "lora_alpha": 5}, {"alpha_pattern": {"down_proj": 40, "k_proj": 3}}],
    ids=["lora", "rslora", "patterns"],
)
@pytest.mark.parametrize("name", SOURCES)
def test_the_merged_model_is_base_and_adapter(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "source")
    report = merged(source, adapter_for(source, tmp_path / "adapter", **changes), tmp_path / "out")
    assert report.matrices is not None
    assert report.logits is not None
    assert report.matrices.count == 8
    assert report.matrices.error < report.matrices.limit
    assert report.logits.difference < 1e-5
    assert report.logits.effect > 0.05
    assert report.why_no_logits == ""
    with open_checkpoint(tmp_path / "out") as written:
        written.check()
        assert written.config.rope_theta == config_of(source)[0].rope_theta


@pytest.mark.parametrize("name", ["chatglm", "chatglm-half-split"])
def test_adapters_with_the_original_names(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "source")
    made = small(small(chatglm_factors(config_of(source)[0], 4)))
    adapter = write_adapter(tmp_path / "adapter", made, settings(("query_key_value", "dense_4h_to_h")))
    report = merged(source, adapter, tmp_path / "out")
    assert report.logits is not None
    assert report.logits.difference < 1e-5
    assert report.logits.effect > 0.05


@pytest.mark.parametrize("targets", [GLM, ("q_proj", "down_proj")], ids=["all", "some"])
@pytest.mark.parametrize("name", ["glm", "chatglm", "glm4-gguf", "qwen2"])
def test_dora_sets_the_norms_of_rows(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    """Each adapted row of the result is W + B A with the adapter's norm; other rows are the base's."""
    source = SOURCES[name](tmp_path / "source")
    config, model_type = config_of(source)
    made = llama_factors(config, 3) if model_type == "qwen2" else factors(config, 3, targets)
    if model_type == "qwen2":
        targets = (*GLM[:4], "gate_proj", "up_proj", "down_proj")
    adapter = write_adapter(tmp_path / "adapter", made | magnitudes(made, 3), settings(targets, use_dora=True))
    report = merged(source, adapter, tmp_path / "out")
    assert (report.dora, report.logits) == (True, None)
    assert "DoRA" in report.why_no_logits
    with (
        open_checkpoint(source) as base,
        open_checkpoint(tmp_path / "out") as written,
        AdapterFile(adapter, config, model_type, merging=True) as file,
    ):
        for layer, key in file.shapes:
            matrix = f"layers.{layer}.{key}"
            a, b = file.load(layer, key)
            whole, norms = base.load(matrix) + b @ a, file.magnitudes(layer, key)
            kept = np.isnan(norms)
            assert kept.any() == (targets == ("q_proj", "down_proj") and key == "qkv")
            norms = np.where(kept, np.linalg.norm(whole, axis=1), norms)
            wanted = whole * (norms / np.linalg.norm(whole, axis=1))[:, None]
            np.testing.assert_allclose(written.load(matrix), wanted, rtol=1e-4, atol=1e-6)


def test_shorter_numbers_and_several_files(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m", "chatglm")
    report = merged(source, adapter_for(source, tmp_path / "a"), tmp_path / "out", dtype="bf16", shard_bytes=60_000)
    assert report.export.dtype == "bf16"
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert report.matrices is not None
    assert report.logits is not None
    assert 0.2 * report.matrices.limit < report.matrices.error < report.matrices.limit
    assert 1e-5 < report.logits.difference < 0.2 * report.logits.effect


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_check_notices_what_is_not_merged(dtype: str, tmp_path: Path) -> None:
    """A copy of the base, a matrix with another's change, and one row that was left out."""
    source = glm_folder(tmp_path / "m")
    adapter, other = (adapter_for(source, tmp_path / f"a{seed}", seed=seed) for seed in (3, 4))
    export(source, tmp_path / "base", dtype, to="hf")
    merged(source, other, tmp_path / "other", dtype=dtype)
    merged(source, adapter, tmp_path / "right", dtype=dtype)
    with open_checkpoint(source) as base, open_for_merging(adapter, base) as file:
        for name in ("base", "other", "right"):
            with open_checkpoint(tmp_path / name) as written:
                found = check_matrices(base, file, written, dtype)
                assert found.passed == (name == "right"), (name, found)


def test_a_result_that_is_wrong_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the disk had given back other numbers: the folder is damaged between writing and checking."""
    source = glm_folder(tmp_path / "m")
    adapter = adapter_for(source, tmp_path / "a")

    def damaged(path: Path) -> Any:
        file = path / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
        file.write_bytes(data)
        return open_checkpoint(path)

    monkeypatch.setattr("glm4.export.merge.open_checkpoint", damaged)
    with pytest.raises(CheckpointError, match="was deleted"):
        merged(source, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_check_nothing_is_compared(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    report = merged(source, adapter_for(source, tmp_path / "a"), tmp_path / "out", check=False)
    assert (report.matrices, report.logits) == (None, None)


def test_a_run_and_its_checkpoints(tmp_path: Path) -> None:
    """A run's folder is its adapter or, before its end, its newest complete checkpoint."""
    source, run = glm_folder(tmp_path / "m"), tmp_path / "run"
    for step in (5, 20):
        adapter_for(source, run / f"checkpoint-{step}", seed=step)
    (run / "checkpoint-100").mkdir()
    assert merged(source, run, tmp_path / "one").adapter == run / "checkpoint-20"
    assert merged(source, run / "checkpoint-5", tmp_path / "two").adapter == run / "checkpoint-5"
    adapter_for(source, run)
    assert merged(source, run, tmp_path / "three").adapter == run
    with pytest.raises(CheckpointError, match="there is no adapter at"):
        merged(source, run / "checkpoint-100", tmp_path / "four")


Breaks = Callable[[Path, ModelConfig], Path]


def _other_shape(at: Path, config: ModelConfig) -> Path:
    made = factors(config, 1)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    made[name] = made[name][:-2]
    return write_adapter(at, made, settings())


def _damaged(at: Path, config: ModelConfig) -> Path:
    made = factors(config, 1)
    made["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"][1, 1] = np.inf
    return write_adapter(at, made, settings())


def _without_norms(at: Path, config: ModelConfig) -> Path:
    return write_adapter(at, factors(config, 1), settings(use_dora=True))


def _prefix(at: Path, config: ModelConfig) -> Path:
    width = 2 * config.num_hidden_layers * config.key_value_size
    about = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    return write_adapter(at, {"prompt_embeddings": np.zeros((4, width), np.float32)}, about)


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda at, config: at, CheckpointError, "there is no adapter at .* no such folder"),
    (_other_shape, TensorError, "this model needs"),
    (_damaged, TensorError, "not finite"),
    (_without_norms, TensorError, "lora_magnitude_vector"),
    (_prefix, UnsupportedModelError, "P-Tuning v2.*cannot be merged; use it beside the model"),
])  # fmt: skip
def test_what_is_refused(make: Breaks, error: type[Exception], says: str, tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = make(tmp_path / "adapter", config_of(source)[0])
    with pytest.raises(error, match=says):
        merged(source, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_models_have_no_weights_to_add_to(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "m")
    adapter = adapter_for(source, tmp_path / "a")
    with open_checkpoint(source) as checkpoint:
        quantize(checkpoint, "int8", tmp_path / "packed", calibrate=False)
    with pytest.raises(InvalidRequestError, match="merge with the original model, then quantize"):
        merged(tmp_path / "packed", adapter, tmp_path / "out")


def test_what_may_be_replaced(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = adapter_for(source, tmp_path / "a")
    merged(source, adapter, tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        merged(source, adapter, tmp_path / "out")
    merged(source, adapter, tmp_path / "out", force=True)
    for kept in (source, adapter):
        with pytest.raises(InvalidRequestError, match="holds"):
            merged(source, adapter, kept, force=True)
    with pytest.raises(InvalidRequestError, match="bf16 or fp32, not 'fp16'"):
        merged(source, adapter, tmp_path / "x", dtype="fp16")


@pytest.mark.parametrize(("model", "base", "fits"), [
    ("glm-4-9b-chat", "THUDM/glm-4-9b-chat-hf", True),
    ("glm-4-9b-chat-hf", "zai-org/glm-4-9b-chat", True),
    ("glm-4-9b-chat", "/home/me/models/mine", True),
    ("glm-4-9b-chat", "", True),
    ("glm-4-9b-chat", "THUDM/LongWriter-glm4-9b", True),
    ("glm-4-9b-chat", "THUDM/glm-4-9b", False),
    ("glm-4-9b-0414", "THUDM/GLM-Z1-9B-0414", False),
    ("starter", "smoke", False),
])  # fmt: skip
def test_the_base_that_an_adapter_names(model: str, base: str, fits: bool, tmp_path: Path) -> None:
    """Equal shapes are not enough: an adapter of one published model is refused on another."""
    source = glm_folder(tmp_path / "m")
    adapter = adapter_for(source, tmp_path / "a", base_model_name_or_path=base)
    assert get_variant(model) is VARIANTS[model]
    with open_checkpoint(source, variant=VARIANTS[model]) as checkpoint:
        if fits:
            open_for_merging(adapter, checkpoint).close()
            return
        with pytest.raises(UnsupportedModelError, match=r"was trained on .*, not on .*base_model_name_or_path"):
            merge(checkpoint, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_as_json(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    report = merged(source, adapter_for(source, tmp_path / "a"), tmp_path / "out")
    found = json.loads(json.dumps(report.as_dict()))
    assert found["adapter"] == {"path": str(tmp_path / "a"), "rank": 4, "dora": False}
    assert set(found["check"]) == {"matrices", "logits", "why_no_logits"}
    assert found["check"]["logits"]["difference"] < 1e-5
