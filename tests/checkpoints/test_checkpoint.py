"""`open_checkpoint` on every layout, and on folders and files that are not right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import tiny
from glm4.checkpoints import Checkpoint, open_checkpoint
from glm4.errors import CheckpointError, Glm4Error, ModelNotFoundError, TensorError, UnsupportedModelError
from glm4.model.tensors import num_parameters
from glm4.requests.processor import Processor
from glm4.variants import VARIANTS
from golden_models import TINY_MODELS, Tensors, TinyModel, file_tensors, write_checkpoint


def assert_loads(checkpoint: Checkpoint, expected: Tensors, dtype: str = "F32") -> None:
    checkpoint.check()
    assert set(checkpoint.tensor_names()) == set(expected)
    for name, value in expected.items():
        loaded = checkpoint.load(name)
        assert loaded.dtype == np.float32
        assert loaded.flags.c_contiguous
        assert checkpoint.shape(name) == value.shape
        np.testing.assert_array_equal(loaded, tiny.rounded(value, dtype), err_msg=name)
        rows = checkpoint.load_rows(name, 1, len(value) - 1)
        np.testing.assert_array_equal(rows, tiny.rounded(value, dtype)[1:-1], err_msg=name)


@pytest.mark.parametrize("model", TINY_MODELS.values(), ids=TINY_MODELS)
def test_every_layout_gives_the_canonical_tensors(tmp_path: Path, model: TinyModel) -> None:
    with open_checkpoint(write_checkpoint(tmp_path, model)) as checkpoint:
        assert checkpoint.kind == "safetensors"
        assert checkpoint.gguf_metadata == {}
        assert_loads(checkpoint, tiny.canonical(model))
        names = checkpoint.tensor_names()
        assert names[0] == "embed_tokens"
        assert names[-1] == ("norm" if model.tie_word_embeddings else "lm_head")
        sizes = sum(int(np.prod(checkpoint.shape(name))) for name in names)
        assert sizes == num_parameters(checkpoint.config)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_dtypes_and_shards(tmp_path: Path, dtype: str, shards: int) -> None:
    model = tiny.tiny_model("chatglm")
    with open_checkpoint(tiny.write_folder(tmp_path, model, dtype=dtype, shards=shards)) as checkpoint:
        assert_loads(checkpoint, tiny.canonical(model), dtype)


@pytest.mark.parametrize("architecture", ["chatglm", "glm4", "llama", "qwen2"])
@pytest.mark.parametrize("fused", [True, False])
def test_every_gguf_architecture_gives_the_canonical_tensors(tmp_path: Path, architecture: Any, fused: bool) -> None:
    model = tiny.gguf_model(architecture)
    path = tiny.write_gguf(tmp_path / "m.gguf", architecture, model, fused=fused)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.kind == "gguf"
        assert checkpoint.path == path
        assert checkpoint.gguf_metadata["general.architecture"] == architecture
        assert checkpoint.chat_template == checkpoint.gguf_metadata["tokenizer.chat_template"]
        assert_loads(checkpoint, tiny.canonical(model))


def test_a_quantised_gguf_is_near_and_a_partial_rotary_qwen2_is_permuted_in_part(tmp_path: Path) -> None:
    model = tiny.gguf_model("qwen2", partial_rotary_factor=0.5)
    keys = {"qwen2.rope.dimension_count": model.rotary_dim}
    path = tiny.write_gguf(tmp_path / "m.gguf", "qwen2", model, quantization="Q8_0", metadata=keys)
    with open_checkpoint(path) as checkpoint:
        checkpoint.check()
        for name, value in tiny.canonical(model).items():
            np.testing.assert_allclose(checkpoint.load(name), value, atol=0.01, err_msg=name)


def test_a_whole_folder_or_one_file(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "one")
    assert open_checkpoint(folder / "model.safetensors").path == folder
    sharded = tiny.write_folder(tmp_path / "many", shards=2)
    with open_checkpoint(sharded / "model-00002-of-00002.safetensors") as checkpoint:
        checkpoint.check()
    tiny.write_gguf(tmp_path / "g" / "any name.gguf")
    assert open_checkpoint(tmp_path / "g").path == tmp_path / "g" / "any name.gguf"
    tiny.write_gguf(tmp_path / "g" / "model.gguf")
    assert open_checkpoint(tmp_path / "g").path == tmp_path / "g" / "model.gguf"
    bare = (tmp_path / "g" / "model.gguf").rename(tmp_path / "blob")
    assert open_checkpoint(bare).kind == "gguf"


def test_a_folder_with_a_split_gguf(tmp_path: Path) -> None:
    """The parts are written by the gguf package, as converters split large models."""
    model = tiny.gguf_model("chatglm")
    tiny.write_gguf(tmp_path / "m.gguf", "chatglm", model, split_max_tensors=6)
    assert len(list(tmp_path.glob("m-*-of-00003.gguf"))) == 3
    with open_checkpoint(tmp_path) as checkpoint:
        assert_loads(checkpoint, tiny.canonical(model))


COMPANIONS: dict[str, tuple[str, dict[str, str]]] = {
    "projector by architecture": ("vision.gguf", {"general.architecture": "clip"}),
    "projector by type": ("vision.gguf", {"general.architecture": "qwen2", "general.type": "mmproj"}),
    "projector by name": ("mmproj-m-f16.gguf", {}),
    "adapter": ("a-lora.gguf", {"general.architecture": "chatglm", "general.type": "adapter"}),
    "imatrix": ("a.gguf", {"general.type": "imatrix"}),
}


@pytest.mark.parametrize("split", [0, 6])
@pytest.mark.parametrize("case", COMPANIONS)
def test_what_belongs_to_a_model_does_not_hide_it(tmp_path: Path, case: str, split: int) -> None:
    name, metadata = COMPANIONS[case]
    model = tiny.gguf_model("chatglm")
    tiny.write_gguf(tmp_path / "m.gguf", "chatglm", model, split_max_tensors=split)
    small = {"v.weight": np.zeros((4, 4), np.float32)}
    companion = tiny.write_gguf(tmp_path / name, "chatglm", metadata=metadata, tensors=small, tokenizer=False)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_loads(checkpoint, tiny.canonical(model))
    if metadata:
        with pytest.raises(UnsupportedModelError, match=r"is not a model but .*; name the model's own GGUF file"):
            open_checkpoint(companion)


def test_folders_of_companions_and_of_several_models(tmp_path: Path) -> None:
    small = {"v.weight": np.zeros((4, 4), np.float32)}
    for name, architecture in (("p.gguf", "clip"), ("mmproj-q.gguf", "clip")):
        metadata = {"general.architecture": architecture}
        tiny.write_gguf(tmp_path / name, "chatglm", metadata=metadata, tensors=small, tokenizer=False)
    with pytest.raises(CheckpointError, match=r"no model, only .*p\.gguf \(a vision projector \(mmproj\)\); fetch"):
        open_checkpoint(tmp_path)
    tiny.write_gguf(tmp_path / "one.gguf", "chatglm", split_max_tensors=6)
    tiny.write_gguf(tmp_path / "two.gguf", "qwen2")
    with pytest.raises(CheckpointError, match="holds 2 GGUF models; name the file of one of them") as caught:
        open_checkpoint(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        [str(tmp_path / "one-00001-of-00003.gguf"), "(chatglm,"],
        [str(tmp_path / "two.gguf"), "(qwen2,"],
    ]
    for line in lines:
        open_checkpoint(Path(line.split()[0])).close()


@pytest.mark.parametrize("name", ["joined.gguf", "joined-00001-of-00003.gguf"])
def test_parts_joined_into_one_file_are_recognized(tmp_path: Path, name: str) -> None:
    tiny.write_gguf(tmp_path / "m.gguf", "chatglm", split_max_tensors=6)
    parts = sorted(tmp_path.glob("*.gguf"))
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    for path in (tmp_path / "j", tmp_path / "j" / name):
        with pytest.raises(CheckpointError, match=r"parts of a split model joined .* Keep the parts as separate files"):
            open_checkpoint(path)


def test_generation_defaults_and_stop_ids(tmp_path: Path) -> None:
    settings = {
        "temperature": 0.8, "top_p": 0.8, "top_k": "many", "do_sample": True, "eos_token_id": [265, 9999],
        "max_length": 128000, "transformers_version": "4.44", "repetition_penalty": None,
    }  # fmt: skip
    with open_checkpoint(tiny.write_folder(tmp_path, generation_config=settings)) as checkpoint:
        assert checkpoint.generation_config == {
            "temperature": 0.8, "top_p": 0.8, "do_sample": True, "eos_token_id": [265, 9999], "max_length": 128000,
        }  # fmt: skip
        assert checkpoint.config.eos_token_ids == (256, 263, 265)
        assert any("top_k" in note for note in checkpoint.notes)
    sampling = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    with open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", metadata=sampling)) as checkpoint:
        assert checkpoint.generation_config == {"temperature": 0.5, "top_k": 20}


def test_where_the_chat_template_is_found(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path)
    assert open_checkpoint(folder).chat_template == tiny.GLM_TEMPLATE
    named = [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}, 7]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_checkpoint(folder).chat_template == "B"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "C"}))
    assert open_checkpoint(folder).chat_template == "C"
    (folder / "chat_template.jinja").write_text("D 北京")
    assert open_checkpoint(folder).chat_template == "D 北京"
    for file in folder.glob("chat_template*"):
        file.unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    assert open_checkpoint(folder).chat_template is None


@pytest.mark.parametrize(
    ("template", "message"),
    [(7, "not a text"), ([{"name": "x", "template": "y"}], "named 'default'"), ("x" * 1_000_001, "longer than")],
)
def test_a_malformed_chat_template_is_refused(tmp_path: Path, template: Any, message: str) -> None:
    folder = tiny.write_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_doubled_braces_of_the_tool_example_are_mended(tmp_path: Path) -> None:
    example = '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}'
    right = tiny.CHATML_TEMPLATE + '{{- "<tool_call>\\n' + example + '\\n</tool_call>" }}'
    doubled = right.replace(example, "{" + example + "}")
    for template in (right, doubled):
        checkpoint = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", "qwen2", chat_template=template))
        assert checkpoint.chat_template == right
        assert any("doubled braces" in note for note in checkpoint.notes) == (template is doubled)


def twice_stored(
    path: Path, *, noise: float, head: str = "Q8_0", embed: str = "Q4_0", architecture: Any = "qwen2"
) -> tuple[Path, Tensors]:
    """A GGUF of a tied model that stores the embedding twice, in two formats; `noise` is added to one of them."""
    model = tiny.gguf_model(architecture, tie_word_embeddings=True)
    tensors = tiny.gguf_tensors(model, architecture)
    matrix = tensors["token_embd.weight"]
    rng = np.random.default_rng(5)
    pair = {
        "output.weight": _requantised(matrix + noise * rng.standard_normal(matrix.shape).astype(np.float32), head),
        "token_embd.weight": _requantised(matrix, embed),
    }
    return tiny.write_gguf(path, architecture, model, tensors={**tensors, **pair}), pair


def _requantised(matrix: np.ndarray, name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[name]
    return gguf.quants.dequantize(gguf.quants.quantize(matrix, kind), kind)


def test_two_quantisations_of_a_tied_matrix_count_once(tmp_path: Path) -> None:
    path, pair = twice_stored(tmp_path / "m.gguf", noise=0.0)
    with open_checkpoint(path) as checkpoint:
        checkpoint.check()
        assert checkpoint.config.tie_word_embeddings
        assert "lm_head" not in checkpoint.tensor_names()
        np.testing.assert_array_equal(checkpoint.load("embed_tokens"), pair["output.weight"])
        assert any("two quantizations" in note for note in checkpoint.notes)


@pytest.mark.parametrize(("noise", "architecture"), [(1.0, "qwen2"), (0.1, "qwen2"), (0.0, "llama"), (0.0, "chatglm")])
def test_a_head_of_its_own_stays_one(tmp_path: Path, noise: float, architecture: str) -> None:
    path, pair = twice_stored(tmp_path / "m.gguf", noise=noise, architecture=architecture)
    with open_checkpoint(path) as checkpoint:
        checkpoint.check()
        assert not checkpoint.config.tie_word_embeddings
        np.testing.assert_array_equal(checkpoint.load("lm_head"), pair["output.weight"])
        np.testing.assert_array_equal(checkpoint.load("embed_tokens"), pair["token_embd.weight"])


def test_a_head_beside_a_tied_embedding_is_ignored_and_noted(tmp_path: Path) -> None:
    model = tiny.tiny_model(tie_word_embeddings=True)
    tensors = file_tensors(model, tiny.canonical(model))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    with open_checkpoint(tiny.write_folder(tmp_path, model, tensors=tensors)) as checkpoint:
        assert_loads(checkpoint, tiny.canonical(model))
        assert any("head was ignored" in note for note in checkpoint.notes)


def changed(layout: Any, change: Any) -> tuple[TinyModel, Tensors]:
    model = tiny.tiny_model(layout)
    tensors = file_tensors(model, tiny.canonical(model))
    change(tensors)
    return model, tensors


def test_missing_tensors_are_named_five_at_most(tmp_path: Path) -> None:
    model, tensors = changed("hf", lambda t: [t.pop(name) for name in list(t) if "layers.1." in name])
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path, model, tensors=tensors))
    with pytest.raises(TensorError, match="lacks 11 tensors") as caught:
        checkpoint.check()
    assert str(caught.value).count("model.layers.1.") == 5
    assert "and 6 more" in str(caught.value)
    with pytest.raises(TensorError, match=r"lacks 1 tensor: 'model\.layers\.1\..*', needed for layers\.1\.qkv"):
        checkpoint.load("layers.1.qkv")
    assert checkpoint.load("norm").shape == (64,)


def test_left_over_tensors_are_refused(tmp_path: Path) -> None:
    model, tensors = changed("chatglm", lambda t: t.update({"transformer.vision.boi": np.ones((1, 4), np.float32)}))
    with pytest.raises(TensorError, match=r"holds 1 tensor: 'transformer\.vision\.boi'"):
        open_checkpoint(tiny.write_folder(tmp_path, model, tensors=tensors)).check()


def test_a_bias_the_configuration_denies_is_left_over(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"holds 6 tensors.*q_proj\.bias"):
        open_checkpoint(tiny.write_folder(tmp_path, config={"attention_bias": False})).check()


def test_wrong_shapes_are_refused_before_reading(tmp_path: Path) -> None:
    model, tensors = changed("hf", lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}))
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path, model, tensors=tensors))
    for action in (checkpoint.check, lambda: checkpoint.load("norm"), lambda: checkpoint.load_rows("norm", 0, 1)):
        with pytest.raises(TensorError, match=r"'model\.norm\.weight' has the shape \(63,\)"):
            action()
    with pytest.raises(TensorError, match="the configuration says"):
        open_checkpoint(tiny.write_folder(tmp_path, config={"vocab_size": 1 << 20})).load("embed_tokens")


def test_names_and_rows_outside_the_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path))
    with pytest.raises(TensorError, match=r"no tensor 'layers\.2\.qkv'"):
        checkpoint.load("layers.2.qkv")
    for start, stop in ((-1, 1), (0, 65), (2, 1)):
        with pytest.raises(TensorError, match="has no rows"):
            checkpoint.load_rows("norm", start, stop)
    checkpoint.close()
    with pytest.raises(CheckpointError, match="was closed"):
        checkpoint.load("norm")


def test_the_published_inv_freq_is_never_left_over(tmp_path: Path) -> None:
    extra = {
        "rotary_pos_emb.inv_freq": np.ones(4, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    model, tensors = changed("hf", lambda t: t.update(extra))
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path, model, tensors=tensors))
    checkpoint.check()
    assert set(checkpoint.tensor_map.ignored) == set(extra)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


WRONG_FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "empty": ((), "holds no model"),
    "unrelated": (("README.md", "photo.jpg"), "holds no model"),
    "no weights": (("config.json", "tokenizer.model"), "no weights"),
    "no config": (("model.safetensors",), "no config.json"),
    "shards without index": (("config.json", "model-00001-of-00002.safetensors"), "neither model.safetensors nor"),
    "unfinished": (("config.json", "model.safetensors.incomplete"), "unfinished download"),
    "unfinished in the cache": (
        ("config.json", ".cache/huggingface/download/abc.incomplete"),
        r"unfinished download \(abc",
    ),
    "pickle": (("config.json", "pytorch_model.bin"), "convert it to safetensors"),
    "pickled checkpoint": (("model.pt",), "convert it to safetensors"),
    "two GGUFs": (
        ("a.gguf", "b.gguf"),
        r"2 GGUF models; name .*\n  .*a\.gguf  \(unreadable, 0\.00 GB\)\n  .*b\.gguf",
    ),
    "later part of a GGUF": (("m-00002-of-00003.gguf",), "holds no model"),
}


@pytest.mark.parametrize("case", WRONG_FOLDERS)
def test_folders_that_are_no_model_say_what_to_do(tmp_path: Path, case: str) -> None:
    names, message = WRONG_FOLDERS[case]
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(touch(tmp_path, *names))


def test_files_that_are_no_model_say_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "x.bin", "x.txt", "x.safetensors", "config.txt")
    with pytest.raises(CheckpointError, match="convert it to safetensors"):
        open_checkpoint(tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="is not a model"):
        open_checkpoint(tmp_path / "x.txt")
    with pytest.raises(CheckpointError, match=r"needs a config\.json beside it"):
        open_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(ModelNotFoundError, match="there is no model at"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(Glm4Error, match=r"cannot access|no model at"):
        open_checkpoint(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="regular file"):
        open_checkpoint(tmp_path / "m.gguf")
    folder = tiny.write_folder(tmp_path / "f")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match="regular file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"model_type": "glm"', b'{"a": 1, "a": 2}', b"[" * 300000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_broken_json_beside_the_weights(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tiny.write_folder(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)


def test_an_endless_config_is_not_read(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path)
    with (folder / "config.json").open("wb") as file:
        file.truncate(17_000_000)
    with pytest.raises(CheckpointError, match="has more than 16000000 bytes"):
        open_checkpoint(folder)


def test_the_variant_is_found_or_given(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path)
    assert open_checkpoint(folder).variant.name == "generic-glm"
    given = VARIANTS["longwriter-glm4-9b"]
    assert open_checkpoint(folder, variant=given).variant is given


def test_a_foreign_llama_template_is_refused(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", "llama", chat_template="{{ '[INST]' }}")
    with pytest.raises(UnsupportedModelError, match="not ChatML"):
        open_checkpoint(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_text_file_may_be_as_windows_editors_write_it(tmp_path: Path, encoding: str) -> None:
    folder = tiny.write_folder(tmp_path, generation_config={"temperature": 0.25}, shards=2)
    (folder / "chat_template.jinja").write_text(f"{tiny.GLM_TEMPLATE}{{# 北京 #}}", encoding="utf-8")
    plain = open_checkpoint(folder)
    ids = Processor.of(plain.text_files).tokenizer.encode("hello 北京", allow_special=True)
    for file in (*folder.glob("*.json"), *folder.glob("*.jinja")):
        file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    marked = open_checkpoint(folder)
    assert marked.config == plain.config
    assert marked.chat_template == plain.chat_template
    assert marked.generation_config == {"temperature": 0.25}
    assert Processor.of(marked.text_files).tokenizer.encode("hello 北京", allow_special=True) == ids
    marked.check()
