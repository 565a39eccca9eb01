"""How long sandboxes live: as long as they are wanted, and never longer than the process that started them."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import USERS, Box, kill_hard, marker, open_box, prelude, running, wait_for

from glm4.errors import SandboxError
from glm4.sandbox.interpreter import own_mounts
from glm4.sandbox.launch import SandboxProcess, unavailable
from glm4.sandbox.limits import Limits, Mount

# Descendants that try to be forgotten: sessions of their own, parents that ended, signals that are ignored.
HIDING = """
import signal, time
word = {word!r}
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
for depth in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        os.chdir("/tmp")
        if depth % 2:
            for handle in (0, 1, 2):
                os.close(handle)
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # no signal when its parent ends
if os.getpid() == 2:
    time.sleep({seconds})
    print("ready", flush=True)
    time.sleep({then})
else:
    time.sleep(1000)
"""


@pytest.fixture(params=USERS)
def own_box(request: pytest.FixtureRequest) -> Iterator[Box]:
    """A box that a test may kill."""
    yield from open_box(request.param)


@pytest.fixture
def here() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)


def hide(box: Box, word: str, **options: float) -> None:
    """Start such a program, and wait until its descendants are there."""
    python, mounts = box.interpreter()
    code = prelude() + HIDING.format(word=word, seconds=0.1, then=options.get("then", 1000))
    answer = box.ask(do="hold", name=word, command=[python, "-I", "-S", "-c", code], mounts=mounts)
    assert answer["line"] == "ready\n"


def test_nothing_survives_close(box: Box) -> None:
    word = marker()
    hide(box, word)
    assert len(running(word)) > 4
    box.ask(do="release", name=word)
    assert running(word) == []  # and not only some time later


def test_nothing_survives_the_end_of_the_program(box: Box) -> None:
    word = marker()
    hide(box, word, then=0.1)
    assert wait_for(lambda: running(word) == [])


def test_nothing_survives_a_kill_of_the_process_that_started_it(own_box: Box) -> None:
    words = [marker() for _ in range(3)]
    for word in words:
        hide(own_box, word)
        assert len(running(word)) > 4
    kill_hard(own_box.process)
    for word in words:
        assert wait_for(lambda word=word: running(word) == [])  # type: ignore[misc]


def test_nothing_survives_a_kill_of_bubblewrap(own_box: Box) -> None:
    word = marker()
    python, mounts = own_box.interpreter()
    code = prelude() + HIDING.format(word=word, seconds=0.1, then=1000)
    pid = own_box.ask(do="hold", name=word, command=[python, "-I", "-S", "-c", code], mounts=mounts)["pid"]
    assert running(word)
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: running(word) == [])


def test_time_is_over_for_a_program_that_ignores_signals(box: Box) -> None:
    outcome = box.python(
        """
import signal, time
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
print("ignoring", flush=True)
while True:
    time.sleep(1000)
""",
        seconds=1,
    )
    assert outcome.killed
    assert outcome.status == 128 + signal.SIGKILL


def test_a_stopped_program_ends_too(box: Box) -> None:
    outcome = box.run(["sh", "-c", "kill -STOP $$"], seconds=0.5)
    assert outcome.killed
    assert outcome.status == 128 + signal.SIGKILL


def test_an_interrupt_reaches_the_program_alone(box: Box) -> None:
    word = marker()
    code = f"""
import subprocess, sys, time
word = {word!r}
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted", child.poll(), flush=True)
"""
    python, mounts = box.interpreter()
    answer = box.ask(do="hold", name=word, command=[python, "-I", "-S", "-c", code], mounts=mounts)
    assert answer["line"] == "ready\n"
    assert box.ask(do="interrupt", name=word) == {"status": 0, "stdout": "interrupted None\n"}


@pytest.mark.usefixtures("here")
def test_a_sandbox_outlives_the_thread_that_asked_for_it() -> None:
    made: list[SandboxProcess] = []
    thread = threading.Thread(target=lambda: made.append(SandboxProcess.start(["cat"])))
    thread.start()
    thread.join()
    with made[0] as process:
        with pytest.raises(TimeoutError):
            process.wait(0.3)
        process.stdin.write(b"still here\n")
        assert process.stdout.readline() == b"still here\n"
        process.stdin.close()
        assert process.wait(100) == 0


@pytest.mark.usefixtures("here")
def test_a_sandbox_ends_with_the_last_reference_to_it() -> None:
    word = marker()
    process = SandboxProcess.start(["sh", "-c", f"sleep 1000; echo {word}"])
    assert running(word)
    reference = weakref.ref(process)
    del process
    gc.collect()
    assert reference() is None
    assert running(word) == []


@pytest.mark.usefixtures("here")
def test_many_start_and_end_at_once() -> None:
    def one(number: int) -> None:
        with SandboxProcess.start(["sh", "-c", f"read x; echo $x-{number}"]) as process:
            process.stdin.write(b"a\n")
            results[number] = process.stdout.read()
            process.wait(100)

    results: dict[int, bytes] = {}
    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"a-{number}\n".encode() for number in range(12)}


@pytest.mark.usefixtures("here")
def test_what_cannot_be_set_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SandboxProcess.start(["true"], mounts=[Mount(tmp_path / "missing", "/data")])
    with pytest.raises(SandboxError, match=r"could not be set up.*proc"):
        SandboxProcess.start(["true"], mounts=[Mount(tmp_path, "/proc/x")])
    with SandboxProcess.start(["true"], working_directory="/missing") as process:
        assert process.wait(100) == 1
        assert b"/missing" in process.stderr.read()
    with SandboxProcess.start(["no-such-program"]) as process:
        assert process.wait(100) == 127
        assert b"no-such-program" in process.stderr.read()


@pytest.mark.parametrize("target", ["/", "data", "/../x", "/a/../b", "", "/a\0b"])
def test_a_mount_has_a_place_inside(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        Mount(Path("/usr"), target)


@pytest.mark.usefixtures("here")
def test_a_file_can_be_mounted_also_one_that_the_user_of_the_sandbox_cannot_reach(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "file").write_text("content")
    (tmp_path / "closed" / "folder").mkdir()
    (tmp_path / "closed" / "folder" / "inner").write_text("more")
    closed = tmp_path / "closed"
    mounts = [Mount(closed / "file", "/given/file"), Mount(closed / "folder", "/given/folder")]
    with SandboxProcess.start(["cat", "/given/file", "/given/folder/inner"], mounts=mounts) as process:
        assert process.stdout.read() == b"contentmore"
        assert process.stderr.read() == b""


@pytest.mark.usefixtures("here")
def test_this_interpreter_runs_inside() -> None:
    code = "import numpy, glm4, sys; print(sys.prefix)"
    limits = Limits(processes=256)
    with SandboxProcess.start([sys.executable, "-c", code], mounts=own_mounts(("numpy",)), limits=limits) as process:
        assert process.stdout.read().decode().strip() == sys.prefix
        assert process.wait(100) == 0
