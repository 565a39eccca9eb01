"""`--to hf` and `--to chatglm`: what is written computes and reads text like its source, bit for bit there and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import SOURCES, export, glm_folder, special

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.hf_layout import HF_CLASSES
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.checkpoints.safetensors_writer import PlannedTensor, plan_shards, write_shards
from glm4.errors import CheckpointError, DiskFullError, InvalidRequestError, TokenizerError
from glm4.kernels import get_kernels
from glm4.requests.processor import Processor
from glm4.tokenizer import load_tokenizer
from golden_models import GOLDEN, draw, file_tensors
from model_driver import Session, loaded
from tiny import tiny_model, write_folder, write_gguf
from vision_folder import write_vision_folder
from vocabularies import glm4_gguf, glm4_rank_file

IDS = np.arange(3, 43, dtype=np.int32) * 5 % 250
TEXTS = ("the 北京 thing", "  12345\n\n你好", "don't", "<|user|> 🙂", "Ünïcode \u00a0 \t\r\n x", "שלום עולם नमस्ते")


def logits(path: Path) -> np.ndarray:
    with loaded(path, get_kernels()) as model:
        found: np.ndarray = Session(model, [len(IDS)]).logits({0: IDS})[0]
    return found


def raw(folder: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """Every tensor of a folder: shape, type, and its numbers (the source has them as float32)."""
    source = SafetensorsSource(folder)
    try:
        infos = {name: source.info(name) for name in source.names()}
        return {name: (info.shape, info.dtype, source.read(name).tobytes()) for name, info in infos.items()}
    finally:
        source.close()


def read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_computes_and_reads_text_like_its_source(name: str, tmp_path: Path) -> None:
    source, out = SOURCES[name](tmp_path / "source"), tmp_path / "out"
    report = export(source, out, "fp32", to="hf")
    assert report.architecture in {one.name for one in HF_CLASSES.values()}
    assert report.nbytes == sum(file.stat().st_size for file in out.iterdir())
    assert set(report.files) == {file.name for file in out.iterdir()}
    np.testing.assert_array_equal(logits(out), logits(source))
    with open_checkpoint(source) as first, open_checkpoint(out) as second:
        assert second.config.rope_theta == first.config.rope_theta
        assert second.config.rms_norm_eps == first.config.rms_norm_eps
        assert second.config.max_position_embeddings == first.config.max_position_embeddings
        a, b = Processor.load(first), Processor.load(second)
        for text in TEXTS:
            assert b.tokenizer.encode(text) == a.tokenizer.encode(text)
            assert b.tokenizer.encode_prompt(text, allow_special=True) == a.tokenizer.encode_prompt(
                text, allow_special=True
            )
        assert b.stop_ids == a.stop_ids


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")])
def test_to_hf_and_back_bit_for_bit(dtype: str, stored: str, tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m", "chatglm", dtype=stored, rope_theta=5e6, max_position_embeddings=131072)
    export(source, tmp_path / "hf", dtype, to="hf", shard_bytes=60_000)
    export(tmp_path / "hf", tmp_path / "back", dtype, to="chatglm")
    original = raw(source)
    original.pop("transformer.rotary_pos_emb.inv_freq")  # follows from the configuration
    assert raw(tmp_path / "back") == original
    first, second = read_json(source / "config.json"), read_json(tmp_path / "back/config.json")
    assert second["eos_token_id"] == [*first["eos_token_id"], special("<|observation|>")]
    same = set(first) - {"torch_dtype", "eos_token_id"}
    assert {key: second[key] for key in same} == {key: first[key] for key in same}
    assert second["rope_ratio"] == 500
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    # and from there: the original's own files are kept as they are
    export(source, tmp_path / "again", dtype, to="chatglm")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()


def test_a_model_that_sees_bit_for_bit(tmp_path: Path) -> None:
    source = GOLDEN / "vision" / "trained"
    export(source, tmp_path / "out", "bf16", to="chatglm", shard_bytes=200_000)
    assert len(list(tmp_path.glob("out/*.safetensors"))) > 2
    assert raw(tmp_path / "out") == raw(source)
    first, second = read_json(source / "config.json"), read_json(tmp_path / "out/config.json")
    assert {key: second[key] for key in first} == first
    with open_checkpoint(tmp_path / "out") as written:
        written.check()
        assert Processor.load(written).image is not None


def test_float32_becomes_the_nearest_bfloat16_ties_to_even(tmp_path: Path) -> None:
    """Half way between two bfloat16 the one with an even last bit is taken."""
    model = tiny_model()
    tensors = file_tensors(model, draw(model))
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
    tensors["model.norm.weight"][: len(bits)] = bits.view(np.float32)
    source = write_folder(tmp_path / "m", model, tensors=tensors)
    export(source, tmp_path / "out", "bf16", to="hf")
    found = SafetensorsSource(tmp_path / "out").read("model.norm.weight")[: len(bits)].view(np.uint32) >> 16
    assert [hex(one) for one in found] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0xbf82"]


def test_shards_and_their_index(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    report = export(source, tmp_path / "out", "fp32", to="hf", shard_bytes=80_000)
    index = read_json(tmp_path / "out/model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(index["weight_map"]) == report.tensors
    assert index["metadata"]["total_size"] == 4 * report.parameters
    sizes = [(tmp_path / "out" / file).stat().st_size for file in files]
    assert max(sizes) < 80_000 + 4096
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(source))


def test_the_writer_insists_on_what_was_planned(tmp_path: Path) -> None:
    shards = plan_shards([PlannedTensor("a", (2, 3), "F32"), PlannedTensor("b", (4,), "BF16")], 24)
    assert [shard.file[:11] for shard in shards] == ["model-00001", "model-00002"]
    a, b = ("a", np.zeros(24, np.uint8)), ("b", np.zeros(8, np.uint8))
    for parts in ([a], [b, a], [a, b, b], [a, ("b", np.zeros(9, np.uint8))]):
        with pytest.raises(ValueError, match=r"bytes|more data"):
            write_shards(tmp_path, shards, iter(parts))
    write_shards(tmp_path, shards, iter([("a", np.zeros(12, np.uint8))] * 2 + [b]))
    assert set(SafetensorsSource(tmp_path).names()) == {"a", "b"}


def test_glm4s_vocabulary_as_files_and_back(tmp_path: Path) -> None:
    """The published vocabulary: `tokenizer.model` → `tokenizer.json` → the same bytes; from GGUF, too."""
    big = {"vocab_size": 151552, "hidden_size": 32, "head_dim": 8}
    model = tiny_model("chatglm", **big)
    source = write_folder(tmp_path / "m", model, tokenizer=False, chat_template=None, config={"eos_token_id": 151329})
    (source / "tokenizer.model").write_bytes(glm4_rank_file())
    export(source, tmp_path / "hf", to="hf", dtype="bf16")
    export(tmp_path / "hf", tmp_path / "back", to="chatglm", dtype="bf16")
    assert (tmp_path / "back/tokenizer.model").read_bytes() == glm4_rank_file()
    ours, written = load_tokenizer(source), load_tokenizer(tmp_path / "hf")
    rows = np.random.default_rng(0).integers(0, 151329, 4000)
    texts = (*TEXTS, *(ours.decode(rows[at : at + 20].tolist()) for at in range(0, 4000, 20)))
    for text in texts:
        assert written.encode(text) == ours.encode(text)
    back = load_tokenizer(tmp_path / "back")
    assert back.added_tokens == ours.added_tokens
    assert load_tokenizer(None, gguf_metadata=glm4_gguf()).encode(TEXTS[0]) == back.encode(TEXTS[0])
    settings = read_json(tmp_path / "hf/tokenizer_config.json")
    assert (settings["eos_token"], settings["padding_side"]) == ("<|endoftext|>", "left")
    assert read_json(tmp_path / "hf/generation_config.json")["eos_token_id"] == [151329, 151336, 151338]


def test_sampling_defaults_and_license_come_along(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m", "chatglm")
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "top_p": 0.7, "foo": 1}))
    (source / "LICENSE").write_text("The license.")
    export(source, tmp_path / "out", to="hf", dtype="bf16")
    stops = [special(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    assert read_json(tmp_path / "out/generation_config.json") == {
        "temperature": 0.8, "top_p": 0.7, "do_sample": True, "eos_token_id": stops, "pad_token_id": stops[0],
    }  # fmt: skip
    assert (tmp_path / "out/LICENSE").read_text() == "The license."


REFUSED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "Edge": (lambda at: glm_folder(at, partial_rotary_factor=1.0), "chatglm", "rotates half of every head"),
    "0414": (lambda at: glm_folder(at, architecture="glm4"), "chatglm", "no form for models of type glm4"),
    "sees": (lambda at: write_vision_folder(at), "hf", "sees pictures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layout_cannot_express(name: str, tmp_path: Path) -> None:
    make, to, says = REFUSED[name]
    source = make(tmp_path / "m")
    with pytest.raises(InvalidRequestError, match=says):
        export(source, tmp_path / "out", "bf16", to=to)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_ranks_has_no_tokenizer_model(tmp_path: Path) -> None:
    """The tiny GGUF vocabulary has a piece behind its special tokens, so its ids are no ranks."""
    source = write_gguf(tmp_path / "m.gguf", "chatglm")
    with pytest.raises(TokenizerError, match="not one of ranks"):
        export(source, tmp_path / "out", "bf16", to="chatglm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "dtype", "error"), [
    (np.inf, "fp32", CheckpointError), (np.nan, "bf16", CheckpointError), (7e4, "fp16", InvalidRequestError),
    (3.4e38, "bf16", InvalidRequestError),
])  # fmt: skip
def test_numbers_that_do_not_fit(value: float, dtype: str, error: type[Exception], tmp_path: Path) -> None:
    model = tiny_model()
    tensors = file_tensors(model, draw(model))
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    source = write_folder(tmp_path / "m", model, tensors=tensors)
    with pytest.raises(error, match=r"not finite|more than"):
        export(source, tmp_path / "out", dtype, to="hf")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_what_may_be_replaced(tmp_path: Path) -> None:
    source, out = glm_folder(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    export(source, out, "bf16", to="hf")  # an empty folder
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(source, out, "bf16", to="hf")
    export(source, out, "fp32", to="hf", force=True)
    assert read_json(out / "config.json")["dtype"] == "float32"
    (out / "notes.md").write_text("mine")
    with pytest.raises(InvalidRequestError, match=r"'notes\.md', which this export does not write"):
        export(source, out, "bf16", to="hf", force=True)
    with pytest.raises(InvalidRequestError, match="holds the model to be exported"):
        export(source, source, "bf16", to="hf", force=True)
    with pytest.raises(InvalidRequestError, match="is not a folder"):
        export(source, source / "config.json", "bf16", to="hf", force=True)
    assert (out / "notes.md").read_text() == "mine"


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = glm_folder(tmp_path / "m")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match="no room"):
        export(source, tmp_path / "out", "bf16", to="hf")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
