"""The folder of a KV store: bounded, private, whole after any end of a process, and shared by several."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from glm4.errors import InvalidRequestError
from glm4.loading import kv_folder
from glm4.loading.kv_folder import PageFolder
from kv_stores import page_files

SIZE = 1000
FILE = SIZE + len(kv_folder.MARK) + 32


def key(prompt: str, index: int) -> bytes:
    return hashlib.sha256(f"{prompt} {index}".encode()).digest()


def keys(prompt: str, count: int) -> list[bytes]:
    return [key(prompt, index) for index in range(count)]


def content(prompt: str, index: int) -> bytes:
    return (f"{prompt}{index}".encode() * SIZE)[:SIZE]


def write(folder: PageFolder, prompt: str, count: int, first: int = 0) -> int:
    """Write pages of a prompt; returns how many were written."""
    return sum(
        folder.write(key(prompt, index), key(prompt, index - 1) if index else None, content(prompt, index))
        for index in range(first, first + count)
    )


def found(folder: PageFolder, prompt: str, count: int = 20) -> int:
    """Pages of a prompt that are there, each with its content."""
    number = folder.touch(keys(prompt, count))
    for index in range(number):
        page = folder.read(key(prompt, index), SIZE)
        assert page is not None
        assert bytes(page) == content(prompt, index)
    return number


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path / "a" / "b", 1 << 20)
    assert write(folder, "x", 5) == 5
    assert write(folder, "x", 5) == 0, "they are there already"
    assert folder.nbytes == 5 * FILE
    again = PageFolder(tmp_path / "a" / "b", 1 << 20)
    assert found(again, "x") == 5
    assert found(again, "y") == 0
    assert len(again.count()) == 5
    assert again.nbytes == 5 * FILE


def test_a_page_whose_parent_is_missing_is_not_written(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, 1 << 20)
    assert not folder.write(key("x", 1), key("x", 0), content("x", 1))
    assert page_files(tmp_path) == []


def test_the_least_recently_used_pages_go_first_and_never_before_those_behind_them(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, 12 * FILE)
    for prompt in ("a", "b", "c"):
        write(folder, prompt, 4)
    assert [found(folder, prompt) for prompt in ("a", "b", "c")] == [4, 4, 4]
    found(folder, "a")
    write(folder, "d", 2)
    assert folder.nbytes == 12 * FILE
    assert [folder.touch(keys(prompt, 4)) for prompt in ("a", "b", "c", "d")] == [4, 2, 4, 2]
    write(folder, "e", 5)
    assert len(page_files(tmp_path)) <= 12
    assert [folder.touch(keys(prompt, 5)) for prompt in ("e", "a", "b", "c")] == [5, 0, 1, 4]
    for file in page_files(tmp_path):
        assert file.stat().st_size == FILE


def test_a_prompt_larger_than_the_limit_keeps_its_beginning(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, 8 * FILE)
    write(folder, "old", 3)
    assert write(folder, "x", 40) == 8
    assert found(folder, "x") == len(page_files(tmp_path)) == 8
    tiny = PageFolder(tmp_path / "tiny", FILE - 1)
    assert write(tiny, "x", 2) == 0


def test_several_processes_together_keep_near_the_limit(tmp_path: Path) -> None:
    """Each counts what the others wrote when it has written a sixteenth of the limit."""
    limit = 64 * FILE
    folders = [PageFolder(tmp_path, limit) for _ in range(3)]
    for round_ in range(60):
        for number, folder in enumerate(folders):
            write(folder, f"{number} {round_}", 2)
        total = sum(file.stat().st_size for file in page_files(tmp_path))
        assert total <= limit + len(folders) * (limit // 16 + FILE)
    assert total > limit // 2


def test_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = PageFolder(tmp_path / "store", 1 << 20)
        write(folder, "x", 2)
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*")}
    modes[tmp_path / "store"] = stat.S_IMODE((tmp_path / "store").stat().st_mode)
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720, 0o702])
def test_a_folder_in_which_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(InvalidRequestError, match="chmod go-w") as caught:
        PageFolder(folder, 1 << 20)
    assert caught.value.param == "kv_store"
    folder.chmod(0o755)
    PageFolder(folder, 1 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    """By a plain user; root may use any folder."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    store = tmp_path / "store"
    PageFolder(store, 1 << 20)
    program = (
        f"import os, sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from glm4.loading.kv_folder import PageFolder\n"
        "os.setuid(65534)\n"
        f"PageFolder(Path({str(store)!r}), 1)\n"
    )
    store.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "InvalidRequestError" in done.stderr


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidRequestError, match="cannot use"):
            PageFolder(path, 1 << 20)


def test_what_killed_processes_left_is_deleted_and_what_others_write_is_not(tmp_path: Path) -> None:
    PageFolder(tmp_path, 1 << 20)
    partial = tmp_path / "partial"
    (partial / "left").write_text("half a page")
    with (partial / "written").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        PageFolder(tmp_path, 1 << 20)
        assert [file.name for file in partial.iterdir()] == ["written"]
    PageFolder(tmp_path, 1 << 20)
    assert list(partial.iterdir()) == []


def test_a_full_disk_is_said_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = PageFolder(tmp_path, 1 << 20)
    write(folder, "x", 2)
    real = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:500])

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "glm4.kv_store"):
        patch.setattr(os, "write", full)
        assert write(folder, "x", 3, first=2) == 0
        assert write(folder, "y", 2) == 0
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert list((tmp_path / "partial").iterdir()) == []
    assert found(folder, "x") == 2
    assert write(folder, "x", 3, first=2) == 3, "as soon as there is room again"
    assert found(folder, "x") == 5


def test_files_that_are_not_ours_are_never_deleted(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, 4 * FILE)
    others = [tmp_path / "notes.txt", tmp_path / "aa" / "notes.kv", tmp_path / "zz" / f"{'0' * 64}.kv"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(bytes(10 * FILE))
        os.utime(other, (0, 0))
    write(folder, "x", 20)
    assert all(other.exists() for other in others)
    assert folder.nbytes <= 4 * FILE
