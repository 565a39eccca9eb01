"""`export_gguf`: what other programs read in the file, that it computes the same here, and what cannot be written."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import exported
import gguf
import numpy as np
import pytest
from exported import SOURCES, export, keys_of, special

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.gguf import GGUFSource
from glm4.errors import CheckpointError, DiskFullError, InvalidRequestError, TokenizerError
from glm4.kernels import get_kernels
from glm4.requests.processor import Processor
from golden_models import draw, file_tensors
from model_driver import Session, loaded
from tiny import gguf_model, special_id, tiny_model, write_folder, write_gguf
from vision_folder import write_vision_folder

IDS = np.arange(3, 43, dtype=np.int32) * 5 % 250
TEXTS = ("the 北京 thing", "  12345\n\n你好", "don't", "<|user|> 🙂")


def logits(path: Path) -> np.ndarray:
    with loaded(path, get_kernels()) as model:
        found: np.ndarray = Session(model, [len(IDS)]).logits({0: IDS})[0]
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_the_file_computes_and_reads_text_like_its_source(name: str, tmp_path: Path) -> None:
    source, out = SOURCES[name](tmp_path / "source"), tmp_path / "out.gguf"
    report = export(source, out)
    assert report.nbytes == out.stat().st_size
    np.testing.assert_array_equal(logits(out), logits(source))
    with open_checkpoint(source) as first, open_checkpoint(out) as second:
        second.check()
        a, b = Processor.load(first), Processor.load(second)
        assert [b.tokenizer.encode(text) for text in TEXTS] == [a.tokenizer.encode(text) for text in TEXTS]
        marked = a.tokenizer.prefix_text + "".join(a.tokenizer.added_tokens) + "the"
        assert b.tokenizer.encode(marked, allow_special=True) == a.tokenizer.encode(marked, allow_special=True)
        assert b.tokenizer.prefix_ids == a.tokenizer.prefix_ids
        assert b.tokenizer.special_tokens == a.tokenizer.special_tokens
        assert b.stop_ids == a.stop_ids
        assert b.dialect.name == a.dialect.name
        rows = first.config.vocab_size
        assert b.tokenizer.unnamed_ids(rows).tolist() == a.tokenizer.unnamed_ids(rows).tolist()
        ours, theirs = first.config, second.config
        for field in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "rotary_dim", "head_dim", "vocab_size"):
            assert getattr(theirs, field) == getattr(ours, field), field


def test_the_keys_of_chatglm(tmp_path: Path) -> None:
    export(SOURCES["chatglm"](tmp_path / "glm-x"), tmp_path / "out.gguf")
    keys = keys_of(tmp_path / "out.gguf")
    shape = {key.removeprefix("chatglm."): value for key, value in keys.items() if key.startswith("chatglm.")}
    assert shape == {
        "context_length": 131072,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": pytest.approx(1.5625e-07),
        "rope.freq_base": 5e6,
        "rope.dimension_count": 8,
        "vocab_size": 288,
    }
    general = {key: value for key, value in keys.items() if key.startswith("general.")}
    assert general == {
        "general.architecture": "chatglm", "general.type": "model", "general.name": "glm-x", "general.file_type": 0,
    }  # fmt: skip
    ids = {key: value for key, value in keys.items() if key.endswith("_id")}
    assert ids == {
        "tokenizer.ggml.eos_token_id": special("<|endoftext|>"),
        "tokenizer.ggml.eot_token_id": special("<|user|>"),
        "tokenizer.ggml.eom_token_id": special("<|observation|>"),
        "tokenizer.ggml.padding_token_id": special("<|endoftext|>"),
        "tokenizer.ggml.unknown_token_id": special("<|endoftext|>"),
    }
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "glm4")
    assert keys["tokenizer.ggml.token_type"] == [1] * 259 + [3] * 14 + [5] * 15
    assert keys["tokenizer.ggml.tokens"][256:260] == ["th", "åĮ", "åĮĹ", "<|endoftext|>"]
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD287]"
    assert keys["tokenizer.ggml.merges"] == ["t h", "å Į", "åĮ Ĺ"]


def test_glm4_says_how_wide_its_heads_are(tmp_path: Path) -> None:
    export(SOURCES["glm4-32b"](tmp_path / "m"), tmp_path / "out.gguf")
    keys = keys_of(tmp_path / "out.gguf")
    assert keys["glm4.attention.key_length"] == keys["glm4.attention.value_length"] == 16
    assert keys["glm4.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert keys["tokenizer.ggml.pre"] == "glm4"
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    layer = "attn_norm attn_q attn_k attn_v attn_output post_attention_norm ffn_norm ffn_up ffn_down post_ffw_norm"
    expected = {f"blk.{i}.{name}.weight" for i in range(2) for name in layer.split()}
    assert names == expected | {"token_embd.weight", "output_norm.weight", "output.weight"}


@pytest.mark.parametrize("architecture", ["chatglm", "qwen2", "llama"])
def test_tensors_are_those_of_a_converted_file(architecture: str, tmp_path: Path) -> None:
    """The same names, rows and order within heads as in a file written by hand with the `gguf` package."""
    original = write_gguf(tmp_path / "m.gguf", architecture)  # type: ignore[arg-type]
    export(original, tmp_path / "out.gguf")
    first, second = GGUFSource(original), GGUFSource(tmp_path / "out.gguf")
    assert set(first.names()) == set(second.names())
    for name in first.names():
        np.testing.assert_array_equal(second.read(name), first.read(name))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_types_with_one_rule_are_encoded_like_the_package_does(dtype: str, tmp_path: Path) -> None:
    source = SOURCES["glm4"](tmp_path / "m")
    export(source, tmp_path / "exact.gguf")
    export(source, tmp_path / "out.gguf", dtype)
    exact = GGUFSource(tmp_path / "exact.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        weights = exact.read(tensor.name)
        assert tensor.tensor_type.name == ("F32" if weights.ndim == 1 else dtype.upper())
        packed = gguf.quants.quantize(weights, tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data.view(np.uint8).reshape(-1), packed.view(np.uint8).reshape(-1))
    keys = keys_of(tmp_path / "out.gguf")
    assert ("general.quantization_version" in keys) == dtype.startswith("q")


def test_a_tied_head_is_not_rounded_to_four_bits(tmp_path: Path) -> None:
    export(SOURCES["qwen2"](tmp_path / "m"), tmp_path / "out.gguf", "q4_0")
    source = GGUFSource(tmp_path / "out.gguf")
    assert source.info("token_embd.weight").dtype == "Q8_0"
    assert source.info("blk.0.ffn_up.weight").dtype == "Q4_0"
    assert "output.weight" not in source.names()


def test_rows_that_are_no_whole_blocks_are_float16(tmp_path: Path) -> None:
    export(exported.glm_folder(tmp_path / "m", intermediate_size=72), tmp_path / "out.gguf", "q8_0")
    source = GGUFSource(tmp_path / "out.gguf")
    assert source.info("blk.0.ffn_down.weight").dtype == "F16"
    assert source.info("blk.0.ffn_up.weight").dtype == "Q8_0"


def test_matrices_go_through_a_slab_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["glm4"](tmp_path / "m")
    export(source, tmp_path / "whole.gguf", "q8_0")
    monkeypatch.setattr("glm4.export.gguf.SLAB_NBYTES", 7 * 4 * 64)
    seen: list[float] = []
    report = export(
        source, tmp_path / "slabs.gguf", "q8_0", name="m", progress=lambda stage, done, total: seen.append(done)
    )
    assert (tmp_path / "slabs.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(seen) > 100
    assert seen == sorted(seen)
    assert seen[-1] == report.nbytes


def test_sampling_defaults_are_kept(tmp_path: Path) -> None:
    source = SOURCES["glm"](tmp_path / "m")
    (source / "generation_config.json").write_text('{"temperature": 0.8, "top_k": 7, "eos_token_id": [3]}')
    report = export(source, tmp_path / "out.gguf")
    keys = keys_of(tmp_path / "out.gguf")
    assert (keys["general.sampling.temp"], keys["general.sampling.top_k"]) == (pytest.approx(0.8), 7)
    assert report.notes == ("GGUF has room for 3 ids that end an answer; left out: [3]",)


@pytest.mark.parametrize(
    ("damage", "says"), [(np.inf, "not finite"), (np.nan, "not finite"), (1e5, "more than float16 can express")]
)
def test_numbers_that_do_not_fit(damage: float, says: str, tmp_path: Path) -> None:
    source = SOURCES["glm"](tmp_path / "m")
    tensors = file_tensors(tiny_model(rope_theta=5e6), draw(tiny_model()))
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = damage
    write_folder(source, tiny_model(rope_theta=5e6), tensors=tensors, tokenizer=False, chat_template=None)
    with pytest.raises((CheckpointError, InvalidRequestError), match=says):
        export(source, tmp_path / "out" / "out.gguf", "f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(InvalidRequestError, match=r"--to gguf writes bf16, .*, not 'q3_k'"):
        export(SOURCES["glm"](tmp_path / "m"), out, "q3_k")
    with pytest.raises(InvalidRequestError, match="only text models"):
        export(write_vision_folder(tmp_path / "v"), out)
    with pytest.raises(InvalidRequestError, match="96 wide, the model is 64"):
        export(exported.glm_folder(tmp_path / "w", num_attention_heads=6), out)
    with pytest.raises(TokenizerError, match="no merges"):
        export(write_folder(tmp_path / "n"), out)
    assert not out.exists()


def test_nothing_is_overwritten_by_mistake(tmp_path: Path) -> None:
    source, out = write_gguf(tmp_path / "m.gguf", "qwen2"), tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(source, out)
    assert out.read_bytes() == b"precious"
    export(source, out, force=True)
    assert keys_of(out)["general.architecture"] == "qwen2"
    with pytest.raises(InvalidRequestError, match="is the model to be exported"):
        export(source, source, force=True)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(InvalidRequestError, match="is not a plain file"):
        export(source, tmp_path / "folder.gguf", force=True)
    with pytest.raises(InvalidRequestError, match=r"ends with \.gguf"):
        export(source, tmp_path / "model.bin")


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["glm"](tmp_path / "m")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(DiskFullError, match="are free"):
        export(source, tmp_path / "deep" / "out.gguf")
    assert not (tmp_path / "deep").exists()


def test_all_three_stop_keys_are_read(tmp_path: Path) -> None:
    """Also the end of a message, which converters leave out."""
    stop = special_id("<|observation|>")
    file = write_gguf(tmp_path / "m.gguf", "chatglm", gguf_model("chatglm"), metadata={
        "tokenizer.ggml.eot_token_id": special_id("<|user|>"), "tokenizer.ggml.eom_token_id": stop,
    })  # fmt: skip
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.config.eos_token_ids == (256, special_id("<|user|>"), stop)
