"""A limit on memory, as a container has it: what `glm4 plan` says fits also starts, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PROGRAM, environment

from glm4.hub import home as glm4_home

_ROOT = Path("/sys/fs/cgroup")
# By version of control groups: the folder of groups, and the file with the limit.
_VERSIONS = ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max"))
_CONTEXT = ("--context", "2048")


@pytest.fixture
def group() -> Iterator[tuple[Path, str]]:
    """A new control group without a limit, and the name of the file that takes one."""
    for folder, limit in _VERSIONS:
        made = folder / f"glm4-test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            if os.access(made / limit, os.W_OK):
                yield made, limit
                return
        finally:
            made.rmdir()
    pytest.skip("needs the right to make control groups of memory")


def within(group: Path, home: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    return subprocess.run(
        ["sh", "-c", join, "sh", *PROGRAM, *args],
        stdin=subprocess.DEVNULL, capture_output=True, env=environment(home), timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("start", ["first", "later"])
def test_what_the_plan_says_fits_starts(group: tuple[Path, str], tmp_path: Path, start: str) -> None:
    folder, limit = group
    (tmp_path / "models").symlink_to(glm4_home() / "models")
    verdicts = []
    for megabytes in (100, 180, 240, 300, 400):
        if start == "first":
            shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        else:
            within(folder.parent, tmp_path, "chat", "-m", "smoke", *_CONTEXT, "--max-tokens", "1", "hi")
        (folder / limit).write_text(f"{megabytes}000000")
        plan = json.loads(within(folder, tmp_path, "plan", "smoke", *_CONTEXT, "--json").stdout)
        chat = within(
            folder, tmp_path, "chat", "-m", "smoke", *_CONTEXT, "--max-tokens", "4", "--temperature", "0", "hi"
        )
        assert (chat.returncode == 0) == plan["fits"], (megabytes, plan, chat)
        assert chat.returncode == 0 or b"tokens fit" in chat.stderr or b"are free" in chat.stderr
        verdicts.append(plan["fits"])
    assert verdicts == sorted(verdicts)
    assert set(verdicts) == {False, True}
