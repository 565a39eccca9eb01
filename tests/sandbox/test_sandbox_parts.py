"""Parts of the sandbox that need no sandbox: diagnosis, control groups, disks, what an interpreter needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from sandboxes import remove_folder

from glm4.errors import SandboxError, SandboxUnavailableError
from glm4.sandbox.command import USER_VARIABLE, give_to_sandbox, sandbox_user
from glm4.sandbox.control_group import ControlGroup
from glm4.sandbox.diagnosis import explain
from glm4.sandbox.disk import usage
from glm4.sandbox.interpreter import as_mounts, interpreter_mounts, own_mounts
from glm4.sandbox.limits import Limits


@pytest.mark.parametrize(
    ("setting", "value", "message", "advice"),
    [
        ("kernel/unprivileged_userns_clone", "0", "bwrap: No permissions to create new namespace", "userns_clone=1"),
        ("user/max_user_namespaces", "0", "bwrap: Creating new namespace failed: No space left", "max_user_namespaces"),
        (
            "kernel/apparmor_restrict_unprivileged_userns", "1", "bwrap: setting up uid map: Permission denied",
            "Ubuntu 24.04",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns", "1",
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "AppArmor",
        ),
        ("none", "", "bwrap: Creating new namespace failed: Operation not permitted", "seccomp=unconfined"),
        ("none", "", "bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("none", "", "bwrap: Unknown option --disable-userns", "0.8 or later"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path: Path, setting: str, value: str, message: str, advice: str) -> None:
    file = tmp_path / setting
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{value}\n")
    error = explain(f"a line before\n{message}", tmp_path)
    assert isinstance(error, SandboxUnavailableError)
    assert advice in str(error)


def test_other_mistakes_are_not_the_systems(tmp_path: Path) -> None:
    for message in ("bwrap: Can't find source path /x: No such file or directory", ""):
        error = explain(message, tmp_path)
        assert type(error) is SandboxError
        assert error.cause == "failure"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a container with a tree of its own sees: its processes are in the root group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (group / name).touch()
    return tmp_path


def test_a_delegated_tree_gets_a_group_with_limits(tree: Path) -> None:
    group = ControlGroup.join(4321, Limits(memory_nbytes=1 << 20, processes=8), tree)
    assert group is not None
    assert (tree / "sys/fs/cgroup/cgroup.subtree_control").read_text() == "+memory +pids"
    (folder,) = [path for path in (tree / "sys/fs/cgroup").iterdir() if path.is_dir()]
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert written == {
        "memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "9",
        "cgroup.procs": "4321",
    }  # fmt: skip
    assert not group.out_of_memory
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    assert group.out_of_memory


@pytest.mark.parametrize("line", ["", "0::/user.slice/user-0.slice/session-1.scope\n", "4:memory:/a\n"])
def test_a_tree_that_is_not_ours_is_left_alone(tree: Path, line: str) -> None:
    (tree / "proc/self/cgroup").write_text(line)
    (tree / "sys/fs/cgroup/cgroup.procs").unlink()
    scope = tree / "sys/fs/cgroup/user.slice/user-0.slice/session-1.scope"
    scope.mkdir(parents=True)
    before = sorted(tree.rglob("*"))
    assert ControlGroup.join(4321, Limits(), tree) is None
    assert sorted(tree.rglob("*")) == before


def test_usage_counts_what_is_taken_and_stops(tmp_path: Path) -> None:
    assert usage(tmp_path, 1 << 20) == 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(os.urandom(100_000))
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("/usr")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert 100_000 + 4 * 4096 <= usage(tmp_path, 1 << 20) <= 100_000 + 8 * 4096
    assert 8192 < usage(tmp_path, 8192) < 1 << 20


def test_any_folder_can_be_removed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    here = os.open(folder, os.O_RDONLY)
    for depth in range(1100):  # deeper than Python's stack, and than any path may be long
        os.mkdir("a" * 100, dir_fd=here)
        inner = os.open("a" * 100, os.O_RDONLY, dir_fd=here)
        if depth % 100 == 0:
            os.close(os.open("file", os.O_CREAT, dir_fd=inner))
            os.mkdir("closed", 0o000, dir_fd=inner)
        os.close(here)
        here = inner
    os.close(here)
    assert usage(folder, 1 << 30) > 1 << 30  # too deep to be counted
    remove_folder(folder)
    assert not folder.exists()
    assert (outside / "kept").exists()


def test_the_user_of_the_sandbox_is_nobody_or_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        assert sandbox_user() is None
        return
    assert sandbox_user() == 65534
    monkeypatch.setenv(USER_VARIABLE, "4321")
    assert sandbox_user() == 4321
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("/usr")
    (tmp_path / "file").touch()
    give_to_sandbox(tmp_path)
    assert {path.lstat().st_uid for path in (tmp_path, *tmp_path.rglob("*"))} == {4321}
    assert Path("/usr").stat().st_uid == 0
    for value in ("0", "root", "-1", "", "99999999999"):
        monkeypatch.setenv(USER_VARIABLE, value)
        with pytest.raises(SandboxUnavailableError, match=USER_VARIABLE):
            sandbox_user()


def test_an_interpreter_needs_its_environment_and_installation(tmp_path: Path) -> None:
    base, environment = tmp_path / "base", tmp_path / "environment"
    for folder in (base, environment):
        (folder / "bin").mkdir(parents=True)
    (base / "bin" / "python3.11").touch()
    (environment / "bin" / "python").symlink_to(base / "bin" / "python3.11")
    (environment / "pyvenv.cfg").touch()
    assert {mount.source for mount in interpreter_mounts(environment / "bin" / "python")} == {base, environment}
    assert interpreter_mounts(base / "bin" / "python3.11")[0].source == base
    assert interpreter_mounts(Path("/usr/bin/python3")) == []
    mounted = [mount.source for mount in own_mounts()]
    for path in (sys.prefix, sys.base_prefix, str(Path(as_mounts.__code__.co_filename).parents[1])):
        assert any(Path(path).is_relative_to(source) for source in [*mounted, Path("/usr")]), path
    assert not any(mount.writable for mount in own_mounts())


def test_never_is_all_of_the_machine_or_of_the_user_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_mounts([Path("/"), tmp_path, Path("/usr/lib"), Path("/usr"), tmp_path / "missing"]) == []
    assert [mount.source for mount in as_mounts([tmp_path / "inner", tmp_path])] == [tmp_path / "inner"]
