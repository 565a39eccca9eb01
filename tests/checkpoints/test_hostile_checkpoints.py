"""Damaged checkpoints: whatever byte is changed or cut off, the result is a model or a CheckpointError.

Nothing else may escape (no struct, NumPy, Unicode, recursion or memory error), and no lying number may make us
allocate more than a damaged file could justify.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from glm4.checkpoints import open_checkpoint
from glm4.errors import CheckpointError
from glm4.kernels.group_codes import pack_codes
from golden_models import config_json

MAX_ALLOCATED = 100_000_000
HOSTILE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# (how the file is damaged) -> damaged bytes; positions are fractions of the interesting part
Damage = Callable[[bytes, int], bytes]


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED
    finally:
        tracemalloc.stop()


def open_everything(path: Path) -> bool:
    """True if the checkpoint loads, False if it is refused properly."""
    with bounded_memory():
        try:
            with open_checkpoint(path) as checkpoint:
                checkpoint.check()
                for name in checkpoint.tensor_names():
                    checkpoint.load(name)
                    if checkpoint.has_codes(name):
                        pack_codes(checkpoint.load_codes(name, 0, checkpoint.shape(name)[0]))
        except CheckpointError:
            return False
    return True


@st.composite
def damages(draw: st.DrawFn, head: int) -> Damage:
    """Cut the file, flip bits, overwrite a word, or delete bytes; mostly in the first `head` bytes, the header."""
    kind = draw(st.sampled_from(["cut", "flip", "byte", "word", "remove", "insert"]))
    where = draw(st.one_of(st.integers(0, head), st.floats(0, 1)))
    value = draw(st.sampled_from([0, 1, 2, 7, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1]))
    bit = draw(st.integers(0, 7))

    def damage(data: bytes, size: int) -> bytes:
        at = min(where if isinstance(where, int) else int(where * size), size - 1)
        if kind == "cut":
            return data[:at]
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        if kind == "byte":
            return data[:at] + bytes([value & 255]) + data[at + 1 :]
        if kind == "word":
            return data[:at] + value.to_bytes(8, "little") + data[at + 8 :]
        if kind == "remove":
            return data[:at] + data[at + 1 + bit :]
        return data[:at] + bytes([value & 255]) * (1 + bit) + data[at:]

    return damage


SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("safetensors"), tiny.tiny_model(**SMALL))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, model = tmp_path_factory.mktemp("gguf") / "model.gguf", tiny.gguf_model("qwen2", **SMALL)
    four_bit = {"attn_q.weight": "Q4_0", "attn_k.weight": "Q4_1", "attn_v.weight": "Q4_0", "ffn_down.weight": "Q4_1"}
    return tiny.write_gguf(path, "qwen2", model, quantization="Q8_0", exceptions=four_bit)


class Files(dict[str, bytes]):
    """File name -> content; a short name in Hypothesis's reports."""

    def __repr__(self) -> str:
        return f"Files({list(self)})"


@pytest.fixture(scope="module")
def originals(folder: Path, gguf_file: Path) -> Files:
    return Files({path.name: path.read_bytes() for path in (*folder.iterdir(), gguf_file)})


@HOSTILE
@given(damage=damages(head=2800))
def test_damaged_safetensors(folder: Path, originals: Files, damage: Damage) -> None:
    path = folder / "model.safetensors"
    data = originals[path.name]
    path.write_bytes(damage(data, len(data)))
    open_everything(folder)
    path.write_bytes(data)


@HOSTILE
@given(damage=damages(head=900))
def test_damaged_configuration(folder: Path, originals: Files, damage: Damage) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_bytes(damage(originals[name], len(originals[name])))
        open_everything(folder)
        path.write_bytes(originals[name])


@HOSTILE
@given(damage=damages(head=12000))
def test_damaged_gguf(gguf_file: Path, originals: Files, damage: Damage) -> None:
    data = originals[gguf_file.name]
    gguf_file.write_bytes(damage(data, len(data)))
    open_everything(gguf_file)


def test_every_truncation_of_the_headers(folder: Path, gguf_file: Path, originals: Files) -> None:
    """Cut at every 97th byte of the headers and near the end: never a model, always a proper refusal."""
    for path, opened, header in ((folder / "model.safetensors", folder, 2800), (gguf_file, gguf_file, 12000)):
        data = originals[path.name]
        for size in [*range(0, header, 97), len(data) // 2, len(data) - 1]:
            path.write_bytes(data[:size])
            assert open_everything(opened) is False, (path.name, size)
        path.write_bytes(data)
        assert open_everything(opened) is True


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("layout", ["chatglm", "hf"])
@HOSTILE
@given(data=st.data())
def test_any_value_under_any_configuration_key(
    tmp_path_factory: pytest.TempPathFactory, layout: Literal["chatglm", "hf"], data: st.DataObject
) -> None:
    model = tiny.tiny_model(layout, **SMALL)
    folder = tmp_path_factory.getbasetemp() / f"any-{layout}"
    if not folder.exists():
        tiny.write_folder(folder, model)
    values = config_json(model)
    keys = [*values, "rope_parameters", "rope_scaling", "sliding_window", "layer_types", "quantization_config"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        values[key] = data.draw(JSON_VALUES)
    (folder / "config.json").write_text(json.dumps(values))
    open_everything(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.json"])
@HOSTILE
@given(data=st.data())
def test_any_value_beside_the_weights(folder: Path, originals: Files, name: str, data: st.DataObject) -> None:
    keys = ["eos_token_id", "temperature", "top_k", "do_sample", "chat_template"]
    (folder / name).write_text(json.dumps(data.draw(st.dictionaries(st.sampled_from(keys), JSON_VALUES))))
    open_everything(folder)
    (folder / name).unlink()
    if name in originals:
        (folder / name).write_bytes(originals[name])


@HOSTILE
@given(data=st.data())
def test_any_value_under_any_gguf_key(tmp_path: Path, data: st.DataObject) -> None:
    values = st.integers(0, (1 << 32) - 1) | st.floats(width=32) | st.booleans() | st.text(max_size=4)
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        model = tiny.gguf_model("glm4", **SMALL)
        keys = st.sampled_from([*tiny.gguf_keys(model, "glm4"), "split.count", "general.type", "glm4.other"])
        changes = data.draw(st.dictionaries(keys, values, min_size=1, max_size=2))
        open_everything(tiny.write_gguf(Path(name) / "m.gguf", "glm4", model, metadata=changes))


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from glm4 import LLM
from glm4.errors import OutOfMemoryError
try:
    with LLM(sys.argv[1], dtype="fp32", num_threads=1) as llm:
        assert llm.info.max_model_len <= 1 << 24
        print(len(llm.generate("a")), "answer")
    LLM(sys.argv[1], dtype="fp32", num_threads=1, max_model_len=1 << 24, max_num_seqs=64)
except OutOfMemoryError as error:
    print(error)
"""


def test_a_declared_context_of_millions_takes_what_is_there(tmp_path: Path) -> None:
    """Under a limit of the address space, of which the machine's free memory says nothing."""
    model = tiny.tiny_model("chatglm", **SMALL)
    folder = tiny.write_folder(tmp_path / "folder", model)
    (folder / "config.json").write_text(json.dumps(config_json(model) | {"seq_length": 1 << 24}))
    metadata = {"qwen2.context_length": 1 << 24}
    file = tiny.write_gguf(tmp_path / "m.gguf", "qwen2", tiny.gguf_model("qwen2", **SMALL), metadata=metadata)
    for path in (folder, file):
        command = [sys.executable, "-c", LIMITED, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr
        assert "1 answer" in done.stdout
        assert "context" in done.stdout.splitlines()[-1], "what to do about it"
