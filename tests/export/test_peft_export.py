"""Adapters under the other names of GLM-4's modules change the model exactly as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import SOURCES, export, glm_folder
from test_gguf_lora import chatglm_factors, config_of

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from glm4.export.merged import MergedCheckpoint, open_for_merging
from glm4.variants import VARIANTS
from golden_models import Tensors

GLM = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def changes(source: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Every matrix with the adapter folded in."""
    with open_checkpoint(source) as base, open_for_merging(adapter, base) as file:
        merged = MergedCheckpoint.of(base, file)
        return {name: merged.load(name) for layer, key in file.shapes for name in [f"layers.{layer}.{key}"]}


def names_of(folder: Path) -> set[str]:
    return {
        name.partition(".lora_")[0].rpartition(".")[2]
        for name in SafetensorsSource(folder / "adapter_model.safetensors").names()
    }


def about(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def with_norms(made: Tensors) -> Tensors:
    rng = np.random.default_rng(0)
    names = [name for name in made if name.endswith("B.weight")]
    return made | {
        name.replace("B.weight", "magnitude_vector"): rng.uniform(0.5, 2, len(made[name])).astype(np.float32)
        for name in names
    }


@pytest.mark.parametrize("targets", [GLM, ("q_proj", "v_proj", "down_proj")], ids=["all", "some"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"k_proj": 3, "down_proj": 40}}, {"use_dora": True}],
    ids=["lora", "rslora", "patterns", "dora"],
)
@pytest.mark.parametrize("name", ["glm", "chatglm", "chatglm-half-split"])
def test_there_and_back(name: str, options: dict[str, Any], targets: tuple[str, ...], tmp_path: Path) -> None:
    source, first = SOURCES[name](tmp_path / "m"), tmp_path / "first"
    made = factors(config_of(source)[0], 1, targets)
    write_adapter(first, with_norms(made) if "use_dora" in options else made, settings(targets, **options))
    report = export(source, tmp_path / "second", "stored", to="peft", lora=first, names="chatglm")
    assert report.dtype == "f32"
    assert names_of(tmp_path / "second") == (
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"} if targets == GLM else
        {"query_key_value", "dense_4h_to_h"}
    )  # fmt: skip
    export(source, tmp_path / "third", "stored", to="peft", lora=tmp_path / "second")
    if "use_dora" not in options:
        assert about(tmp_path / "third")["r"] == 4
        assert names_of(tmp_path / "third") == set(targets)
    wanted = changes(source, first)
    for folder in ("second", "third"):
        for matrix, values in changes(source, tmp_path / folder).items():
            np.testing.assert_allclose(values, wanted[matrix], rtol=1e-5, atol=1e-5, err_msg=f"{folder}: {matrix}")


def test_adapters_with_the_original_names_for_hugging_faces_classes(tmp_path: Path) -> None:
    source, first = SOURCES["chatglm"](tmp_path / "m"), tmp_path / "first"
    targets = ("query_key_value", "dense_4h_to_h")
    write_adapter(first, chatglm_factors(config_of(source)[0], 4), settings(targets))
    export(source, tmp_path / "second", "stored", to="peft", lora=first, names="hf")
    assert sorted(about(tmp_path / "second")["target_modules"]) == ["down_proj", "k_proj", "q_proj", "v_proj"]
    assert about(tmp_path / "second")["rank_pattern"] == {}
    wanted = changes(source, first)
    for matrix, values in changes(source, tmp_path / "second").items():
        np.testing.assert_allclose(values, wanted[matrix], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("names", "repository"), [("hf", "glm-4-9b-chat-hf"), ("chatglm", "glm-4-9b-chat")])
def test_the_base_is_the_repository_with_these_names(names: str, repository: str, tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = write_adapter(tmp_path / "a", factors(config_of(source)[0]), settings())
    with open_checkpoint(source, variant=VARIANTS["glm-4-9b-chat"]) as checkpoint:
        from glm4.export.targets import ExportRequest, export_target

        export_target("peft").export(ExportRequest(checkpoint, tmp_path / "out", "stored", lora=adapter, names=names))
    assert about(tmp_path / "out")["base_model_name_or_path"] == f"THUDM/{repository}"


def test_what_fits_already_is_copied(tmp_path: Path) -> None:
    """From the newest checkpoint of a run, without what only training needs."""
    source, run = SOURCES["qwen2"](tmp_path / "m"), tmp_path / "run"
    checkpoint = run / "checkpoint-9"
    write_adapter(checkpoint, factors(config_of(source)[0], 1, GLM[:4]), settings(GLM[:4]), dtype="BF16")
    (checkpoint / "optimizer.pt").write_bytes(b"large")
    report = export(source, tmp_path / "out", "stored", to="peft", lora=run)
    assert report.dtype == "bf16"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (checkpoint / weights).read_bytes()
    config, model_type = config_of(source)
    AdapterFile(tmp_path / "out", config, model_type).close()


def prefix(at: Path, source: Path) -> Path:
    config, _ = config_of(source)
    heads, width = config.num_key_value_heads, config.head_dim
    sizes = {"token_dim": heads * width, "num_attention_heads": heads, "num_layers": config.num_hidden_layers}
    about = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "num_transformer_submodules": 1, **sizes}
    values = np.random.default_rng(0).standard_normal((4, 2 * config.num_hidden_layers * heads * width))
    return write_adapter(at, {"prompt_embeddings": values.astype(np.float32)}, about)


def test_a_prefix_is_copied_and_has_no_form_in_gguf(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = prefix(tmp_path / "a", source)
    export(source, tmp_path / "out", "stored", to="peft", lora=adapter, names="chatglm")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (adapter / weights).read_bytes()
    with pytest.raises(UnsupportedModelError, match="GGUF has no form"):
        export(source, tmp_path / "a.gguf", lora=adapter)


Makes = Callable[[Path, Path], Path]


@pytest.mark.parametrize(("name", "names", "error", "says"), [
    ("glm4", "chatglm", InvalidRequestError, "one set of names"),
    ("glm", "peft", InvalidRequestError, "--names is one of hf, chatglm"),
])  # fmt: skip
def test_names_that_there_are_not(name: str, names: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "m")
    adapter = write_adapter(tmp_path / "a", factors(config_of(source)[0]), settings())
    with pytest.raises(error, match=says):
        export(source, tmp_path / "out", "stored", to="peft", lora=adapter, names=names)
    assert not (tmp_path / "out").exists()


def test_what_is_refused(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    adapter = write_adapter(tmp_path / "a", factors(config_of(source)[0]), settings())
    with pytest.raises(InvalidRequestError, match="name it with --lora"):
        export(source, tmp_path / "out", "stored", to="peft")
    with pytest.raises(InvalidRequestError, match="is the adapter to be exported"):
        export(source, adapter, "stored", to="peft", lora=adapter, force=True)
    with pytest.raises(CheckpointError, match="there is no adapter at"):
        export(source, tmp_path / "out", "stored", to="peft", lora=source)
    with pytest.raises(InvalidRequestError, match="has no use for --names"):
        export(source, tmp_path / "out", "bf16", to="hf", names="hf")
