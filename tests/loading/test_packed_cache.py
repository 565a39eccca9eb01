"""The packed cache: a second start is the first one, from a mapped file, and nothing damaged or stale is ever used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from glm4 import LLM, SamplingParams
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.cli import main
from glm4.errors import InvalidRequestError
from glm4.loading import cache_entries, memory_estimate
from glm4.loading import packed_cache as cache
from glm4.loading.memory_estimate import Wanted, estimates
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.system.atomic_folder import partial_of, remove_abandoned
from glm4.system.memory import Room

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
CHAT = [{"role": "user", "content": "hello"}]
Answer = tuple[str, list[int]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GLM4_") and name != "GLM4_ISA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / "home"))
    # tiny models on a machine whose disk may be nearly full
    monkeypatch.setattr(cache, "_MIN_NBYTES", 0)
    monkeypatch.setattr(cache_entries, "_SPARE_DISK", 0)
    return tmp_path / "home"


@pytest.fixture(params=["folder", "gguf"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "gguf":
        return tiny.write_gguf(tmp_path / "model.gguf", "qwen2", quantization="Q8_0")
    return tiny.write_folder(tmp_path / "model", generation_config={"temperature": 0.3})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_folder(tmp_path / "model")


def ask(model: Path, dtype: str = "auto") -> Answer:
    """(kind of the checkpoint that was used, greedy tokens)"""
    with LLM(str(model), dtype=dtype, max_model_len=128) as llm:
        assert llm.checkpoint is not None
        (output,) = llm.chat(CHAT, GREEDY)
        return llm.checkpoint.kind, output.outputs[0].token_ids


def only_entry() -> Path:
    (entry,) = cache_entries.cache_entries()
    return entry.path


def test_the_second_start_is_packed_and_the_same(model: Path) -> None:
    with LLM(str(model), max_model_len=128) as llm:
        assert llm.checkpoint is not None
        kind = llm.checkpoint.kind
        first = llm.chat(CHAT, GREEDY)[0]
        stops, defaults = llm.processor.stop_ids, llm.default_sampling_params()
    assert kind != "packed"
    with open_checkpoint(only_entry()) as entry:
        assert entry.packed is not None
        entry.packed.verify_sha256()
    with LLM(str(model), max_model_len=128) as llm:
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"
        again = llm.chat(CHAT, GREEDY)[0]
        assert again.prompt_token_ids == first.prompt_token_ids
        assert again.outputs[0].token_ids == first.outputs[0].token_ids
        assert again.outputs[0].text == first.outputs[0].text
        assert (llm.processor.stop_ids, llm.default_sampling_params()) == (stops, defaults)
    assert len(cache_entries.cache_entries()) == 1


def test_one_entry_for_each_precision_worth_keeping(folder: Path) -> None:
    for dtype in PRECISIONS:
        assert ask(folder, dtype)[0] == "safetensors"
    assert sorted(entry.precision for entry in cache_entries.cache_entries()) == ["int4", "int8"]
    int8, int4 = ask(folder, "int8"), ask(folder, "int4")
    assert int8[0] == int4[0] == "packed"
    assert ask(folder, "auto") == int8
    assert ask(folder, "fp32")[0] == "safetensors"


def test_a_packed_checkpoint_is_not_packed_again(folder: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(folder), "--to", "int8", "-o", str(tmp_path / "out")]) == 0
    assert ask(tmp_path / "out")[0] == "packed"
    assert cache_entries.cache_entries() == []


def test_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_PACKED_CACHE_GB", "0")
    ask(folder)
    assert cache_entries.cache_entries() == []
    monkeypatch.delenv("GLM4_PACKED_CACHE_GB")
    ask(folder)
    monkeypatch.setenv("GLM4_PACKED_CACHE_GB", "0")
    assert ask(folder)[0] == "safetensors"


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GLM4_PACKED_CACHE_GB", value)
    with pytest.raises(InvalidRequestError, match="GLM4_PACKED_CACHE_GB"):
        LLM(str(folder))


def test_small_models_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MIN_NBYTES", 64 << 20)
    ask(folder)
    assert cache_entries.cache_entries() == []


def test_changed_weights_are_another_model(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model", tiny.tiny_model(seed=1))
    first = ask(folder)
    tiny.write_folder(folder, tiny.tiny_model(seed=2))
    second = ask(folder)
    assert second[0] == "safetensors"
    assert second[1] != first[1]
    assert ask(folder) == ("packed", second[1])


def test_changed_files_beside_the_weights_count_too(folder: Path) -> None:
    ask(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.25}')
    with LLM(str(folder), max_model_len=128) as llm:
        assert llm.default_sampling_params().temperature == 0.25
    with LLM(str(folder), max_model_len=128) as llm:
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"
        assert llm.default_sampling_params().temperature == 0.25


def test_another_version_makes_another_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder)
    monkeypatch.setattr(cache, "VERSIONS", (*cache.VERSIONS[:-1], cache.ENTRY_VERSION + 1))
    assert ask(folder)[0] == "safetensors"
    assert len(cache_entries.cache_entries()) == 2


def test_the_kernels_make_no_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pack to the same bytes (`test_packed_bytes.py`), so one entry serves all."""
    ask(folder)
    monkeypatch.setenv("GLM4_KERNELS", "reference")
    assert ask(folder)[0] == "packed"
    assert len(cache_entries.cache_entries()) == 1


def flip(name: str, at: float) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        data = bytearray((entry / name).read_bytes())
        data[int(at * len(data))] ^= 0x10
        (entry / name).write_bytes(data)

    return damage


def remove(pattern: str) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        for file in entry.glob(pattern):
            file.unlink()

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped weights": flip("model.safetensors", 0.6),
    "flipped header": flip("model.safetensors", 0.0),
    "cut weights": lambda entry: os.truncate(entry / "model.safetensors", 5000),
    "no weights": lambda entry: (entry / "model.safetensors").unlink(),
    "no configuration": lambda entry: (entry / "config.json").unlink(),
    "cut configuration": lambda entry: os.truncate(entry / "config.json", 100),
    "empty": remove("*"),
    "no tokenizer": remove("tokenizer*"),
    "no sampling defaults": lambda entry: (entry / "generation_config.json").unlink(),
    "no record": lambda entry: (entry / cache_entries.IDENTITY_FILE).unlink(),
    "empty record": lambda entry: (entry / cache_entries.IDENTITY_FILE).write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(model: Path, damage: str) -> None:
    kind, tokens = ask(model)
    DAMAGES[damage](only_entry())
    assert ask(model) == (kind, tokens)
    assert ask(model) == ("packed", tokens)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 20)], ids=["missing", "cut off"])
def test_an_entry_without_its_whole_template_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """It would open, and render conversations in another way than the original."""
    template = tiny.CHATML_TEMPLATE.replace("<|im_start|>", "<|im_start|>Dear ")
    model = tiny.write_gguf(tmp_path / "model.gguf", "qwen2", chat_template=template)
    prompts = []
    for _ in range(3):
        with LLM(str(model), max_model_len=128) as llm:
            prompts.append(llm.prepare_chat(CHAT).prompt_ids)
        if len(prompts) == 1:
            damage(only_entry() / "chat_template.jinja")
    assert prompts[0] == prompts[1] == prompts[2]
    assert ask(model)[0] == "packed"


def test_an_entry_goes_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a reader finds while an entry is being deleted, and when the deleting process was killed."""
    ask(folder)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda path, **_: (path / "tokenizer_config.json").unlink())
        cache_entries.discard(only_entry())
    assert cache_entries.cache_entries() == []
    assert len(list(cache_entries.cache_folder().iterdir())) == 1
    remove_abandoned(cache_entries.cache_folder())
    assert list(cache_entries.cache_folder().iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny.write_folder(tmp_path / f"m{seed}", tiny.tiny_model(seed=seed)) for seed in range(3)]
    ask(models[0])
    only = cache_entries.cache_entries()[0].nbytes
    monkeypatch.setattr(cache, "folder_nbytes", lambda checkpoint, precision: only)
    monkeypatch.setenv("GLM4_PACKED_CACHE_GB", str(2.5 * only / 1e9))
    ask(models[1])
    for age, model in enumerate((models[1], models[0])):
        (entry,) = (entry for entry in cache_entries.cache_entries() if entry.model == str(model))
        os.utime(entry.path, (1000 - 100 * age, 1000 - 100 * age))
    assert ask(models[0])[0] == "packed"  # used just now
    ask(models[2])
    assert {entry.model for entry in cache_entries.cache_entries()} == {str(models[0]), str(models[2])}


def test_nothing_is_kept_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_entries, "_SPARE_DISK", 5_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(9e9, 4e9, 5e9))
    assert ask(folder)[0] == "safetensors"
    assert cache_entries.cache_entries() == []


def test_nothing_is_kept_that_exceeds_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_PACKED_CACHE_GB", "0.0001")
    ask(folder)
    assert cache_entries.cache_entries() == []


def test_a_home_that_cannot_be_used(folder: Path, home: Path) -> None:
    home.write_text("a file where the folder should be")
    assert ask(folder)[0] == "safetensors"


def test_a_home_that_cannot_even_be_looked_at(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long, here; or the folder of another user."""
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / ("x" * 300)))
    assert ask(folder)[0] == "safetensors"


def test_auto_takes_what_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 entry is not used where int8 would not fit; then "auto" is int4."""
    # What reading the original takes is more than a tiny model's weights in any format.
    monkeypatch.setattr(memory_estimate, "SLAB_NBYTES", 0)
    monkeypatch.setattr(memory_estimate, "ENTRY_BYTES", 0)
    ask(folder, "int8")
    with open_checkpoint(folder) as checkpoint:
        int8, int4 = estimates(checkpoint.config, Wanted(), mapped=("int8",))
    free = int8.total(128) - 1
    assert int4.total(128) <= free, "int4 from the original should take less than int8 in place"
    monkeypatch.setattr(Room, "here", lambda: Room(free))
    with LLM(str(folder), max_model_len=128) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "int4"
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "safetensors"
    with LLM(str(folder), max_model_len=128) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "int4"
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"


@pytest.fixture
def four_bit(tmp_path: Path) -> Path:
    return tiny.write_gguf(
        tmp_path / "four.gguf", "qwen2", quantization="Q4_0", exceptions={"0.ffn_down.weight": "Q8_0"}
    )


def test_kept_codes_are_kept(four_bit: Path) -> None:
    """An entry of dtype "stored" answers like the file; others do not stand in for it under "auto"."""
    assert ask(four_bit, "int8")[0] == ask(four_bit, "int4")[0] == "gguf"
    kind, tokens = ask(four_bit)
    assert kind == "gguf"
    assert sorted(entry.precision for entry in cache_entries.cache_entries()) == ["int4", "int8", "stored"]
    for dtype in ("auto", "stored"):
        with LLM(str(four_bit), dtype=dtype, max_model_len=128) as llm:
            assert llm.info.execution is not None
            assert llm.info.execution.dtype == "stored"
            assert llm.checkpoint is not None
            assert llm.checkpoint.kind == "packed"
            assert llm.chat(CHAT, GREEDY)[0].outputs[0].token_ids == tokens
    assert ask(four_bit, "int8")[0] == ask(four_bit, "int4")[0] == "packed"


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_few_codes_stay_int8(tmp_path: Path, dtype: str) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", "qwen2", quantization="Q8_0", exceptions={"ffn_down.weight": "Q4_0"})
    ask(path, dtype)
    with LLM(str(path), max_model_len=128) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "int8"
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"
    assert ask(path, "stored")[0] == "gguf"
    assert ask(path, "stored")[0] == "packed"


def test_auto_takes_what_fits_of_kept_codes(four_bit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(four_bit) as checkpoint:
        stored = checkpoint.stored_precision
        assert stored is not None
        best, _ = estimates(checkpoint.config, Wanted(), stored)
        packed, _ = estimates(checkpoint.config, Wanted(), stored, mapped=("stored", "int4"))
    free = best.total(128)
    monkeypatch.setattr(Room, "here", lambda: Room(free))
    ask(four_bit, "int4")
    for kind in ("gguf", "packed"):  # an int4 entry is there, and what it was made from would fit as stored
        with LLM(str(four_bit), max_model_len=128) as llm:
            assert llm.info.execution is not None
            assert llm.info.execution.dtype == "stored"
            assert llm.checkpoint is not None
            assert llm.checkpoint.kind == kind
    free = packed.total(128) - 1
    with LLM(str(four_bit), max_model_len=128) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == "int4"
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"


@pytest.mark.parametrize("names", [None, 3, "layers.0.o", [[], 4]], ids=str)
def test_a_damaged_record_does_no_harm(four_bit: Path, names: object) -> None:
    _, tokens = ask(four_bit, "int8")
    record = only_entry() / cache_entries.IDENTITY_FILE
    record.write_text(json.dumps(json.loads(record.read_text()) | {"four_bit": names}))
    assert ask(four_bit, "int8") == ("packed", tokens)


def test_a_cleared_cache_does_not_disturb_who_uses_it(folder: Path) -> None:
    _, tokens = ask(folder)
    with LLM(str(folder), max_model_len=128) as llm:
        assert llm.checkpoint is not None
        assert llm.checkpoint.kind == "packed"
        assert cache_entries.clear_cache() > 100_000
        assert llm.chat(CHAT, GREEDY)[0].outputs[0].token_ids == tokens
    assert cache_entries.clear_cache() == 0


def test_given_up_writing_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = cache.BackgroundWrite.start

    def cancelled(self: cache.BackgroundWrite, model: Transformer) -> None:
        self._cancelled.set()
        start(self, model)

    monkeypatch.setattr(cache.BackgroundWrite, "start", cancelled)
    ask(folder)
    assert list(cache_entries.cache_folder().iterdir()) == []


# Processes

_PREPARED = """
import sys, time
from glm4 import LLM, SamplingParams
from glm4.loading import cache_entries, packed_cache
packed_cache._MIN_NBYTES = cache_entries._SPARE_DISK = 0
def ask():
    with LLM(sys.argv[1], max_model_len=128) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        print(llm.chat([{"role": "user", "content": "hello"}], params)[0].outputs[0].token_ids, flush=True)
"""
_SLOW = """
from glm4.checkpoints import packed_writer
written = packed_writer.PackedWriter.write
def write(self, name, data):
    written(self, name, data)
    if name == "layers.1.o":
        print("half", flush=True)
        time.sleep(60)
packed_writer.PackedWriter.write = write
"""


def start(script: str, model: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(model)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(folder: Path) -> None:
    processes = [start(_PREPARED + "ask()", folder) for _ in range(3)]
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    with open_checkpoint(only_entry()) as entry:
        assert entry.packed is not None
        entry.packed.verify_sha256()
    kind, tokens = ask(folder)
    assert kind == "packed"
    assert {*answers} == {f"{tokens}\n"}
    assert [path.name for path in cache_entries.cache_folder().iterdir()] == [only_entry().name]


def test_a_killed_writer(folder: Path) -> None:
    process = start(_PREPARED + _SLOW + "LLM(sys.argv[1], max_model_len=128).close()", folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    # While it writes, another process runs the original and leaves the writing alone.
    assert ask(folder)[0] == "safetensors"
    assert cache_entries.cache_entries() == []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    (leftover,) = cache_entries.cache_folder().iterdir()
    assert leftover.name.endswith(".partial")
    assert ask(folder)[0] == "safetensors"
    assert not leftover.exists()
    assert partial_of(only_entry()) == leftover
    assert ask(folder)[0] == "packed"


# Commands


def test_models_shows_and_clears_the_cache(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    assert main(["models"]) == 0
    assert "Packed cache" not in capsys.readouterr().out
    ask(folder)
    assert main(["models"]) == 0
    assert "Packed cache: 1 model, " in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["packed_cache"]
    assert row["bytes"] == sum(file.stat().st_size for file in only_entry().iterdir())
    assert row["limit_bytes"] == 30_000_000_000
    assert [(entry["model"], entry["precision"]) for entry in row["entries"]] == [(str(folder), "int8")]
    assert main(["models", "--clear-cache"]) == 0
    assert "freed" in capsys.readouterr().err
    assert cache_entries.cache_entries() == []
    assert main(["models", "--clear-cache"]) == 0
    assert "empty" in capsys.readouterr().err


def test_only_entries_of_a_removed_model_go(tmp_path: Path) -> None:
    models = [tiny.write_folder(tmp_path / name) for name in ("keep", "gone")]
    for model in models:
        ask(model)
    assert cache_entries.clear_cache(of=tmp_path / "gone") > 0
    assert [entry.model for entry in cache_entries.cache_entries()] == [str(models[0])]
    shutil.rmtree(models[1])
    assert ask(models[0])[0] == "packed"


def test_all_parts_of_a_split_model_are_part_of_its_identity(tmp_path: Path) -> None:
    """[glob characters] in a name must not hide the siblings."""
    tiny.write_gguf(tmp_path / "model[x]*.gguf", "chatglm", split_max_tensors=5)
    parts = sorted(tmp_path.glob("model*.gguf"))
    assert len(parts) > 2
    _, tokens = ask(parts[0])
    assert ask(parts[0]) == ("packed", tokens)
    os.utime(parts[-1], (1, 1))
    assert ask(parts[0]) == ("gguf", tokens)
