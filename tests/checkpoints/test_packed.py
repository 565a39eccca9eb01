"""Packed checkpoints: the same model bit for bit, from a mapped file, and nothing but CheckpointError when damaged."""

from __future__ import annotations

import hashlib
import json
import mmap
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from glm4 import LLM, SamplingParams
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.packed_format import ALIGNMENT, FORMAT_VERSION, checksum
from glm4.checkpoints.packed_writer import PackedWriter
from glm4.checkpoints.safetensors import read_header
from glm4.checkpoints.tensor_source import MappedFile
from glm4.errors import CheckpointError, InvalidRequestError, TensorError, UnsupportedModelError
from glm4.kernels import get_kernels
from glm4.kernels.base import Kernels
from glm4.kernels.formats import FORMATS, PackedWeight, packed_nbytes
from glm4.loading.weights import load_model
from glm4.model.precision import PRECISIONS
from model_driver import forced_logits
from packing import ODD, pack_folder

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


def make_source(root: Path, name: str) -> Path:
    if name.startswith("gguf-"):
        architecture: Any = name.removeprefix("gguf-")
        return tiny.write_gguf(root / f"{name}.gguf", architecture, quantization="Q8_0")
    models = {
        "hf": tiny.tiny_model(),
        "hf-tied-odd": tiny.tiny_model(tie_word_embeddings=True, vocab_size=291, **ODD),
        "chatglm": tiny.tiny_model("chatglm"),
        "chatglm-half-split": tiny.tiny_model("chatglm", half_split=True),
        "glm4": tiny.tiny_model(architecture="glm4", attention_bias=False),
    }
    return tiny.write_folder(root / name, models[name], dtype="BF16", generation_config={"temperature": 0.4})


SOURCES = [
    "hf", "hf-tied-odd", "chatglm", "chatglm-half-split", "glm4", "gguf-chatglm", "gguf-glm4", "gguf-llama",
    "gguf-qwen2",
]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {name: make_source(root, name) for name in SOURCES}


@pytest.mark.parametrize("kernel_set", ["native", "reference"])
@pytest.mark.parametrize("dtype", list(PRECISIONS))
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_logits_bit_for_bit(
    sources: dict[str, Path], tmp_path: Path, name: str, dtype: str, kernel_set: str
) -> None:
    kernels = get_kernels(kernel_set)
    folder = pack_folder(sources[name], tmp_path / "packed", dtype, kernels)
    ids = np.arange(3, 40, dtype=np.int32)
    with open_checkpoint(sources[name]) as source, open_checkpoint(folder) as packed:
        assert packed.kind == "packed"
        assert packed.variant.dialect == source.variant.dialect
        assert packed.variant.name == source.variant.name
        expected = forced_logits(load_model(source, PRECISIONS[dtype], kernels), ids)
        model = load_model(packed, PRECISIONS[dtype], kernels)
    # The files are closed by now: the weights keep the mapping alive.
    assert np.array_equal(forced_logits(model, ids), expected)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_answers(sources: dict[str, Path], tmp_path: Path, name: str, dtype: str) -> None:
    """The whole facade: prompt ids, tokens, text, stop ids and sampling defaults."""
    folder = pack_folder(sources[name], tmp_path / "packed", dtype, get_kernels())
    chat = [{"role": "user", "content": "what is this? 你好"}]
    with LLM(str(sources[name]), dtype=dtype, max_model_len=128) as direct, LLM(str(folder), max_model_len=128) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == dtype
        assert llm.processor.stop_ids == direct.processor.stop_ids
        assert llm.default_sampling_params() == direct.default_sampling_params()
        assert llm.tokenizer.special_tokens == direct.tokenizer.special_tokens
        assert llm.tokenizer.prefix_ids == direct.tokenizer.prefix_ids
        assert np.array_equal(llm.tokenizer.unnamed_ids(288), direct.tokenizer.unnamed_ids(288))
        (expected,), (output,) = direct.chat(chat, GREEDY), llm.chat(chat, GREEDY)
        assert output.prompt_token_ids == expected.prompt_token_ids
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        assert output.outputs[0].text == expected.outputs[0].text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Path:
    return pack_folder(sources["hf-tied-odd"], tmp_path_factory.mktemp("packed") / "int4", "int4", get_kernels())


def test_the_weights_are_the_mapped_file(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["int4"], get_kernels())
        for weight in (model.weights.embed_tokens, model.weights.layers[1].down):
            assert not weight.data.flags.writeable
            base: Any = weight.data
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(getattr(base, "obj", base), mmap.mmap)
    assert model.weights.lm_head is model.weights.embed_tokens


def test_the_file_is_what_the_configuration_says(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "glm4_packed"
    assert section["weights"] == {
        "file": "model.safetensors",
        "nbytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    table = read_header(MappedFile(folder / "model.safetensors"))
    matrices = [entry for entry in table.values() if entry.info.dtype == "U8"]
    assert len(matrices) == 1 + 2 * 4
    assert all(entry.offset % ALIGNMENT == 0 for entry in matrices)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        checkpoint.packed.verify_sha256()


def test_rows_are_the_dequantised_ones(folder: Path, sources: dict[str, Path]) -> None:
    kernels = get_kernels()
    with open_checkpoint(folder) as packed, open_checkpoint(sources["hf-tied-odd"]) as source:
        packed.check()
        assert packed.tensor_names() == source.tensor_names()
        for name in packed.tensor_names():
            whole, expected = packed.load(name), source.load(name)
            if expected.ndim == 2:
                expected = kernels.unpack(kernels.pack(PRECISIONS["int4"].format_of(name), expected))
            assert np.array_equal(whole, expected)
            rows = len(whole)
            for start, stop in ((0, rows), (0, 0), (5, 33), (rows - 3, rows)):
                assert np.array_equal(packed.load_rows(name, start, stop), whole[start:stop])


def test_another_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="packed as int4 and cannot be run as int8"):
        LLM(str(folder), dtype="int8")
    with LLM(str(folder), dtype="int4", max_model_len=64) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "int4"


def test_loading_makes_no_second_copy(tmp_path: Path) -> None:
    model = tiny.tiny_model(vocab_size=60_000, hidden_size=256)
    source = tiny.write_folder(tmp_path / "source", model)
    folder = pack_folder(source, tmp_path / "packed", "int8", get_kernels())
    assert (folder / "model.safetensors").stat().st_size > 30_000_000
    with open_checkpoint(folder) as checkpoint:
        tracemalloc.start()
        try:
            load_model(checkpoint, PRECISIONS["int8"], get_kernels())
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"format_version": 3}, UnsupportedModelError, "version 3"),
        ({"format_version": True}, UnsupportedModelError, "glm4 quantize"),
        ({"formats": {}}, UnsupportedModelError, "weight formats"),
        ({"precision": {"name": "int4", "linear": "int8", "embedding": "int8"}}, UnsupportedModelError, "int8"),
        ({"precision": [1]}, UnsupportedModelError, "weight formats"),
        ({"weights": None}, CheckpointError, "size and sha256"),
        ({"weights": {"nbytes": 5, "sha256": "0" * 64}}, TensorError, "truncated"),
    ],
)
def test_other_versions_and_broken_descriptions(
    folder: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    values["quantization_config"] |= change
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(error, match=says):
        open_checkpoint(copy)


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def verify(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        checkpoint.packed.verify_sha256()


def loads(folder: Path) -> bool:
    """True if the folder gives a model, False if it is refused properly."""
    try:
        with open_checkpoint(folder) as checkpoint:
            # A configuration that no longer says "packed" makes it an ordinary checkpoint, whose tensors don't fit.
            packed = checkpoint.packed
            load_model(checkpoint, PRECISIONS["int4"] if packed is None else packed.precision, get_kernels())
    except CheckpointError:
        return False
    return True


HOSTILE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def victim(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of(folder, tmp_path_factory.mktemp("victim") / "copy")


@HOSTILE
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), near_start=st.booleans())
def test_any_flipped_bit_of_the_weights_is_found(
    folder: Path, victim: Path, where: float, bit: int, near_start: bool
) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    at = int(where * (min(4000, len(data)) if near_start else len(data)))
    data[at] ^= 1 << bit
    (victim / "model.safetensors").write_bytes(data)
    if loads(victim):  # only white space of the header may change without anybody noticing
        length = int.from_bytes(data[:8], "little")
        assert json.loads(data[8 : 8 + length])
        assert at < 8 + length
    with pytest.raises(CheckpointError):
        verify(victim)


@HOSTILE
@given(size=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(folder: Path, victim: Path, size: float) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (victim / "model.safetensors").write_bytes(data[: int(size * len(data))])
    assert loads(victim) is False


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@HOSTILE
@given(data=st.data())
def test_any_value_in_the_configuration(folder: Path, victim: Path, data: st.DataObject) -> None:
    (victim / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    values = json.loads((folder / "config.json").read_text())
    target = values if data.draw(st.booleans()) else values["quantization_config"]
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON_VALUES)
    (victim / "config.json").write_text(json.dumps(values))
    loads(victim)
    (victim / "config.json").write_bytes((folder / "config.json").read_bytes())


@pytest.mark.parametrize("value", [None, {}])
def test_a_configuration_that_forgets_the_packing_is_refused(folder: Path, victim: Path, value: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (victim / "config.json").write_text(json.dumps(values | {"quantization_config": value}))
    assert loads(victim) is False
    (victim / "config.json").write_bytes((folder / "config.json").read_bytes())


def test_the_writer_takes_tensors_in_order_only(tmp_path: Path) -> None:
    with open_checkpoint(make_source(tmp_path, "hf")) as checkpoint:
        config = checkpoint.config
    embedding = np.zeros(packed_nbytes("int8", config.vocab_size, config.hidden_size), np.uint8)
    with PackedWriter(tmp_path / "weights", config, PRECISIONS["int8"]) as writer:
        with pytest.raises(ValueError, match="'embed_tokens'"):
            writer.write("norm", np.zeros(config.hidden_size, np.float32))
        with pytest.raises(ValueError, match="missing"):
            writer.finish()
    with PackedWriter(tmp_path / "weights", config, PRECISIONS["int8"]) as writer:
        writer.write("embed_tokens", embedding[:64])
        with pytest.raises(ValueError, match="bytes, but"):
            writer.write("embed_tokens", embedding)


@given(st.binary(max_size=200))
def test_checksum_is_the_sum_of_words(data: bytes) -> None:
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    assert checksum(np.frombuffer(data, np.uint8)) == sum(words) % (1 << 64)


def test_the_layout_is_the_one_this_version_number_stands_for(reference_digest: str) -> None:
    """Fails when bytes change their meaning: then FORMAT_VERSION must be raised, and the digest here renewed."""
    assert (FORMAT_VERSION, reference_digest) == (
        2,
        "01e0a6b95ec5fd95851088bd86b5a9b700039a323e328fcd295fb583f7b27008",
    )


@pytest.fixture
def reference_digest() -> str:
    """A digest of what every format makes of fixed bytes."""
    kernels: Kernels = get_kernels("reference")
    digest = hashlib.sha256()
    for name in sorted(FORMATS):
        fmt = FORMATS[name]
        cells = np.random.RandomState(3).randint(0, 60, fmt.packed_nbytes(64, 96)).astype(np.uint8)
        values = kernels.unpack(PackedWeight(cells, name, 64, 96))
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
