"""A model that sees as a packed folder: by `glm4 quantize`, by the packed cache, through the whole facade."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, settings, write_adapter
from glm4 import LLM, SamplingParams
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.safetensors import read_header
from glm4.checkpoints.tensor_source import MappedFile
from glm4.cli import main
from glm4.errors import InvalidRequestError, TensorError, UnsupportedModelError
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.loading import cache_entries, packed_cache
from glm4.loading.weights import load_model
from glm4.model.layers import Tensor
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.quantization import checkpoint as quantization
from glm4.quantization.report import QuantizationReport
from packing import describe, pack_loaded
from vision_folder import BEGIN, END, MODEL, ROWS, SIZE, write_vision_folder

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
PICTURE = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
CHAT: list[Any] = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is this? 你好"}]}
]
TOWER_KINDS = [
    "vision.patch", "vision.positions", "vision.qkv", "vision.o", "vision.fc1", "vision.fc2", "vision.merge",
    "vision.projector", "vision.projector_gate", "vision.projector_up", "vision.projector_down",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_folder(tmp_path_factory.mktemp("sees") / "model")


def quantize(source: Path, folder: Path, target: str, calibrate: bool = False) -> QuantizationReport:
    with open_checkpoint(source) as checkpoint:
        return quantization.quantize(checkpoint, target, folder, calibrate=calibrate)


def quantized(source: Path, folder: Path, dtype: str) -> Path:
    quantize(source, folder, dtype)
    return folder


def kept(source: Path, folder: Path, dtype: str) -> Path:
    return pack_loaded(source, folder, dtype, get_kernels())


def bits(tensor: Tensor) -> bytes:
    return tensor.data.tobytes() if isinstance(tensor, PackedWeight) else tensor.tobytes()


def seen(model: Transformer) -> np.ndarray:
    assert model.vision is not None
    encoding = model.vision.start(PICTURE)
    while encoding.result is None:
        encoding.advance(1 << 20)
    return encoding.result


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("pack", [quantized, kept])
def test_a_packed_tower_is_the_loaded_one_bit_for_bit(
    source: Path, tmp_path: Path, dtype: str, pack: Callable[[Path, Path, str], Path]
) -> None:
    folder = pack(source, tmp_path / "packed", dtype)
    with open_checkpoint(source) as original, open_checkpoint(folder) as packed:
        assert packed.kind == "packed"
        assert packed.config.vision == original.config.vision is not None
        assert packed.text_files.image == original.text_files.image
        loaded, mapped = (load_model(one, PRECISIONS[dtype], get_kernels()) for one in (original, packed))
    assert loaded.weights.tensors.keys() == mapped.weights.tensors.keys()
    for name, tensor in loaded.weights.tensors.items():
        assert bits(mapped.weights.tensors[name]) == bits(tensor), name
    assert mapped.weights.tensors["vision.patch"].format == "bf16"  # type: ignore[union-attr]
    assert mapped.weights.tensors["vision.layers.0.fc1"].format == dtype  # type: ignore[union-attr]
    np.testing.assert_array_equal(seen(mapped), seen(loaded))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("pack", [quantized, kept])
def test_the_same_answers_about_a_picture(
    source: Path, tmp_path: Path, dtype: str, pack: Callable[[Path, Path, str], Path]
) -> None:
    folder = pack(source, tmp_path / "packed", dtype)
    with LLM(str(source), dtype=dtype, max_model_len=128) as direct, LLM(str(folder), max_model_len=128) as llm:
        assert llm.checkpoint is not None
        assert direct.checkpoint is not None
        assert llm.checkpoint.variant == direct.checkpoint.variant
        assert llm.checkpoint.chat_template == direct.checkpoint.chat_template
        assert llm.tokenizer.special_tokens == direct.tokenizer.special_tokens
        assert llm.processor.stop_ids == direct.processor.stop_ids
        (expected,), (output,) = direct.chat(CHAT, GREEDY), llm.chat(CHAT, GREEDY)
        assert BEGIN in output.prompt_token_ids
        assert END in output.prompt_token_ids
        assert output.prompt_token_ids == expected.prompt_token_ids
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids


def test_the_packed_cache_keeps_the_tower(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLM4_PACKED_CACHE_GB", raising=False)
    monkeypatch.setattr(packed_cache, "_MIN_NBYTES", 0)
    monkeypatch.setattr(cache_entries, "_SPARE_DISK", 0)
    answers, kinds = [], []
    for _ in range(2):
        with LLM(str(source), max_model_len=128) as llm:
            assert llm.checkpoint is not None
            kinds.append(llm.checkpoint.kind)
            answers.append(llm.chat(CHAT, GREEDY)[0].outputs[0].token_ids)
    assert kinds == ["safetensors", "packed"]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_calibration_rounds_the_tower_plainly(
    source: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text it is calibrated on does not pass through it; the report keeps its matrices apart from the text's."""
    monkeypatch.setattr(quantization, "SEQUENCES", 2)
    plain = quantize(source, tmp_path / "plain", dtype)
    report = quantize(source, tmp_path / "out", dtype, calibrate=True)
    for made in (plain, report):
        assert [name for name in made.kinds if name.startswith("vision.")] == TOWER_KINDS
        assert made.kinds["vision.patch"].format == made.kinds["vision.positions"].format == "bf16"
        assert (made.kinds["vision.qkv"].format, made.kinds["vision.qkv"].tensors) == (dtype, MODEL.num_hidden_layers)
        assert made.kinds["qkv"].tensors == MODEL.text.num_hidden_layers
    for name, kind in report.kinds.items():
        assert (kind.relative_output_rmse is None) == (name.startswith("vision.") or name == "embed_tokens"), name
    with open_checkpoint(tmp_path / "plain") as first, open_checkpoint(tmp_path / "out") as second:
        assert first.packed is not None
        assert second.packed is not None
        second.packed.verify_sha256()
        for name in first.tensor_names():
            same = np.array_equal(first.load(name), second.load(name))
            assert same or not name.startswith("vision."), name
        assert not np.array_equal(first.load("layers.0.down"), second.load("layers.0.down"))
        load_model(second, second.packed.precision, get_kernels())


@pytest.mark.parametrize("name", ["vision.patch", "vision.layers.1.fc2", "vision.merge_bias", "vision.end"])
def test_a_damaged_tower_is_found(source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = quantized(source, tmp_path / "packed", "int8") / "model.safetensors"
    mapped = MappedFile(file)
    location = read_header(mapped)[name]
    mapped.close()
    data = bytearray(file.read_bytes())
    data[location.offset + location.info.nbytes // 2] ^= 4
    file.write_bytes(data)
    with open_checkpoint(file.parent) as checkpoint, pytest.raises(TensorError, match=f"checksum of '{name}'"):
        load_model(checkpoint, PRECISIONS["int8"], get_kernels())
    assert main(["info", str(file.parent), "--verify"]) != 0
    assert "damaged" in capsys.readouterr().err


def test_the_layout_of_the_fine_tensors_is_recorded(source: Path, tmp_path: Path) -> None:
    """Another build's bf16 may be laid out differently; a folder without them does not name it, as before."""
    folder = quantized(source, tmp_path / "packed", "int8")
    formats = json.loads((folder / "config.json").read_text())["quantization_config"]["formats"]
    assert formats.keys() == {"int8", "bf16"}
    for wrong in ({"int8": formats["int8"]}, formats | {"bf16": formats["bf16"] | {"row_block": 16}}):
        describe(folder, formats=wrong)
        with pytest.raises(UnsupportedModelError, match="weight formats this build does not have"):
            open_checkpoint(folder)


def test_info_and_plan(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = quantized(source, tmp_path / "packed", "int4")
    facts, plans = [], []
    for folder in (source, packed):
        assert main(["info", str(folder), "--json", *(["--verify"] if folder == packed else [])]) == 0
        facts.append(json.loads(capsys.readouterr().out))
        assert main(["plan", str(folder), "--dtype", "int4", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
        assert main(["info", str(folder)]) == 0
        assert f"a picture becomes {SIZE} x {SIZE} pixels" in capsys.readouterr().out
        assert main(["plan", str(folder)]) == 0
        assert f"A picture takes {ROWS} tokens of the context." in " ".join(capsys.readouterr().out.split())
    assert facts[0]["vision"] == facts[1]["vision"]
    assert (facts[0]["vision"]["begin_id"], facts[0]["vision"]["end_id"]) == (BEGIN, END)
    assert facts[0]["parameters"] == facts[1]["parameters"] == plans[0]["parameters"]
    assert (facts[0]["dialect"], facts[0]["template"]) == (facts[1]["dialect"], facts[1]["template"])
    assert facts[1]["dtypes"]["bf16"] == 2
    assert facts[1]["verified"] is True
    for found in plans:
        assert found["picture"]["tokens"] == ROWS
        assert found["picture"]["first_token_seconds"] > found["picture"]["tower_seconds"] > 0
        assert found["bytes"]["weights"]["vision"] == plans[0]["bytes"]["weights"]["vision"] > 0
        assert found["bytes"]["pictures"] > 0


def test_there_is_nothing_to_keep_as_stored(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidRequestError, match="this model has none: leave dtype at auto"):
        LLM(str(source), dtype="stored")
    assert main(["plan", str(source), "--dtype", "stored"]) == 2
    assert "dtype stored keeps the 4-bit codes of GGUF files" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_adapters_change_the_text_model(source: Path, tmp_path: Path, packed: bool) -> None:
    folder = quantized(source, tmp_path / "packed", "int8") if packed else source
    with LLM(str(folder), dtype="int8", max_model_len=128) as llm:
        config = llm.backend.model.config  # type: ignore[attr-defined]
        plain = llm.chat(CHAT, GREEDY)[0].outputs[0].token_ids
        good = write_adapter(tmp_path / "good", factors(config, 1))
        llm.load_adapter("mine", str(good))
        assert llm.chat(CHAT, GREEDY, adapter="mine")[0].outputs[0].token_ids != plain
        assert llm.chat(CHAT, GREEDY)[0].outputs[0].token_ids == plain
        tower = "base_model.model.transformer.vision.transformer.layers.0.attention.dense.lora_"
        size = MODEL.hidden_size
        changed = {
            tower + "A.weight": np.ones((4, size), np.float32),
            tower + "B.weight": np.ones((size, 4), np.float32),
        }
        bad = write_adapter(tmp_path / "bad", factors(config, 1) | changed, settings())
        with pytest.raises(UnsupportedModelError, match="changes the vision tower"):
            llm.load_adapter("bad", str(bad))
        assert [adapter.name for adapter in llm.adapters()] == ["mine"]
