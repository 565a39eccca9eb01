"""Attacks from inside the sandbox: use up memory, processes, disks, time and patience."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sandboxes import Box, marker, running, wait_for

MIB = 1 << 20


def test_one_process_gets_no_more_memory(box: Box) -> None:
    found = box.results(
        """
def grow():
    kept = []
    while True:
        kept.append(bytearray(8 << 20))
attempt("grow", grow)
attempt("large", bytearray, 1 << 40)
import mmap
attempt("mapped", mmap.mmap, -1, 1 << 40)
attempt("locked", syscall, "mlock", 0, 1 << 30) if "mlock" in NUMBERS else None
""",
        limits={"memory_nbytes": 128 * MIB},
    )
    assert found == {"grow": "MemoryError", "large": "MemoryError", "mapped": "ENOMEM"}


def test_many_processes_get_no_more_memory(box: Box) -> None:
    outcome = box.python(
        """
import time
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20) * 48)
        time.sleep(1000)
        os._exit(0)
time.sleep(1000)
""",
        limits={"memory_nbytes": 128 * MIB},
    )
    assert outcome.exceeded == "memory"
    assert not outcome.killed  # by the test


def test_pages_that_processes_share_count_once(box: Box) -> None:
    found = box.results(
        """
import time
kept = bytearray(os.urandom(1 << 20) * 48)
children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        time.sleep(1)
        os._exit(0)
    children.append(pid)
results["ended"] = [os.waitpid(pid, 0)[1] for pid in children]
""",
        limits={"memory_nbytes": 128 * MIB},
    )
    assert found["ended"] == [0] * 8


def test_shared_memory_counts_even_if_no_process_seems_to_own_it(box: Box) -> None:
    outcome = box.python(
        """
import mmap, time
for _ in range(8):
    if os.fork() == 0:
        shared = mmap.mmap(-1, 48 << 20)
        for at in range(0, 48 << 20, 4096):
            shared[at] = 1
        time.sleep(1000)
        os._exit(0)
time.sleep(1000)
""",
        limits={"memory_nbytes": 128 * MIB},
    )
    assert outcome.exceeded == "memory"


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_scratch_folders_are_small(box: Box, folder: str) -> None:
    found = box.results(
        f"""
def fill():
    for number in range(1000):
        with open(f"{folder}/{{number}}", "wb") as file:
            file.write(bytes(1 << 20))
attempt("fill", fill)
results["files"] = len(os.listdir("{folder}"))
""",
        limits={"memory_nbytes": 64 * MIB},
    )
    assert found["fill"] == "ENOSPC"
    assert found["files"] <= 17


def test_scratch_folders_and_processes_share_the_memory(box: Box) -> None:
    outcome = box.python(
        """
import time
for folder in ("/tmp", "/dev/shm"):
    with open(f"{folder}/full", "wb") as file:
        for _ in range(30):
            file.write(bytes(1 << 20))
kept = os.urandom(1 << 20) * 80
time.sleep(1000)
""",
        limits={"memory_nbytes": 128 * MIB},
    )
    assert outcome.exceeded == "memory"


def test_names_in_scratch_folders_are_counted(box: Box) -> None:
    outcome = box.python("""
number = 0
while True:
    os.close(os.open(f"/tmp/{number}", os.O_CREAT))
    number += 1
""")
    assert outcome.exceeded == "disk"


def test_a_fork_bomb_stays_inside(box: Box) -> None:
    word = marker()
    outcome = box.python(
        f"""
word, most = {word!r}, 0
import time
end = time.monotonic() + 1
try:
    while time.monotonic() < end:
        os.fork()
except OSError as error:
    if os.getpid() == 2:
        results["refused"] = errno.errorcode[error.errno]
        results["processes"] = len([name for name in os.listdir("/proc") if name.isdecimal()])
if os.getpid() != 2:
    time.sleep(1000)
""",
        limits={"processes": 20},
    )
    assert outcome.exceeded in (None, "processes")
    if outcome.exceeded is None:
        found = outcome.results
        assert found["refused"] == "EAGAIN"
        assert found["processes"] <= 21
    assert running(word) == []


def test_threads_count_as_processes(box: Box) -> None:
    outcome = box.python(
        """
import threading, time
started = 0
try:
    while started < 1000:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        started += 1
except RuntimeError:
    print(json.dumps({"started": started}), flush=True)
    os._exit(0)
""",
        limits={"processes": 20},
    )
    assert outcome.exceeded in (None, "processes")
    assert outcome.exceeded or outcome.results["started"] < 20


def test_descriptors_are_few(box: Box) -> None:
    found = box.results(
        """
def many():
    kept = []
    while True:
        kept.append(os.pipe())
attempt("pipes", many)
""",
        limits={"open_files": 64},
    )
    assert found == {"pipes": "EMFILE"}


def test_a_file_is_bounded_sparse_or_not(box: Box) -> None:
    folder = box.folder()
    found = box.results(
        f"""
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
handle = os.open("/data/file", os.O_CREAT | os.O_RDWR)
attempt("sparse", os.ftruncate, handle, 1 << 40)
attempt("far", os.pwrite, handle, b"x", {MIB})
attempt("reserve", os.posix_fallocate, handle, 0, {2 * MIB})
attempt("fill", lambda: [os.write(handle, bytes(65536)) for _ in range(1000)])
attempt("scratch", os.truncate, open("/tmp/x", "w").name, 1 << 40)
results["size"] = os.fstat(handle).st_size
""",
        mounts=[(str(folder), "/data", True)],
        limits={"file_nbytes": MIB},
    )
    assert found.pop("size") == MIB == (folder / "file").stat().st_size
    assert set(found.values()) == {"EFBIG"}


FILLING = {
    "large files": """
for number in range(1000):
    with open(f"/data/{number}", "wb") as file:
        file.write(os.urandom(1 << 20))
""",
    "small files": """
for number in range(1 << 20):
    os.close(os.open(f"/data/{number}", os.O_CREAT))
""",
    "folders in folders": """
os.chdir("/data")
while True:
    os.mkdir("a" * 200)
    os.chdir("a" * 200)
""",
    "files without names": """
kept = []
for number in range(60):
    kept.append(open(f"/data/{number}", "wb"))
    os.unlink(f"/data/{number}")
    kept[-1].write(os.urandom(1 << 20))
    kept[-1].flush()
""",
    "hidden by modes": """
os.mkdir('/data/closed')
os.chdir("/data/closed")
for number in range(40):
    with open(f"{number}", "wb") as file:
        os.chmod("/data/closed", 0o300)
        file.write(os.urandom(1 << 20))
""",
}


@pytest.mark.parametrize("way", FILLING)
def test_a_writable_folder_is_bounded(box: Box, way: str) -> None:
    folder = box.folder()
    outcome = box.python(
        f"{FILLING[way]}\nimport time\ntime.sleep(1000)",
        mounts=[(str(folder), "/data", True)],
        limits={"disk_nbytes": 16 * MIB, "file_nbytes": MIB},
    )
    assert outcome.exceeded == "disk"
    assert not outcome.killed


def test_less_than_the_quota_is_no_reason_to_end(box: Box) -> None:
    folder = box.folder()
    found = box.results(
        """
import time
for number in range(10):
    with open(f"/data/{number}", "wb") as file:
        file.write(bytes(1 << 20))
handle = os.open("/data/sparse", os.O_CREAT | os.O_RDWR)
os.ftruncate(handle, 60 << 20)
time.sleep(1)
results["done"] = 1
""",
        mounts=[(str(folder), "/data", True)],
        limits={"disk_nbytes": 16 * MIB},
    )
    assert found == {"done": 1}


def test_processor_time_ends(box: Box) -> None:
    outcome = box.python("while True: pass", limits={"cpu_seconds": 1})
    assert outcome.exceeded == "cpu" or outcome.status == 128 + signal.SIGXCPU
    assert not outcome.killed


def test_processor_time_of_children_counts(box: Box) -> None:
    """Each child ends before a limit of its own would; and one that ignores the kernel's signal is ended, too."""
    outcome = box.python(
        """
import signal, time
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True:
    pid = os.fork()
    if pid == 0:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        os._exit(0)
    os.waitpid(pid, 0)
""",
        limits={"cpu_seconds": 1},
    )
    assert outcome.exceeded == "cpu"
    assert not outcome.killed


def test_no_core_is_dumped(box: Box) -> None:
    folder = box.folder()
    outcome = box.run(
        ["sh", "-c", "cd /data; ulimit -c unlimited 2>/dev/null; kill -SEGV $$"], mounts=[(str(folder), "/data", True)]
    )
    assert outcome.status == 128 + signal.SIGSEGV
    assert list(folder.iterdir()) == []


def test_output_is_read_only_as_far_as_wanted(box: Box) -> None:
    outcome = box.run(["sh", "-c", "exec cat /dev/zero"], most=MIB)
    assert outcome.killed
    assert outcome.status == 128 + signal.SIGKILL
    assert MIB < len(outcome.stdout) <= MIB + (1 << 16)


def test_output_may_be_any_bytes(box: Box) -> None:
    outcome = box.run(["printf", r"\377\376\033]0;title\007\033[2J\000end"])
    assert outcome.stdout == "\xff\xfe\x1b]0;title\x07\x1b[2J\x00end"  # as it came: who shows it must clean it


def test_nothing_is_used_up_outside_by_all_this(box: Box) -> None:
    """The process that starts sandboxes keeps no descriptor, thread or child of those that ended."""
    box.run(["true"])
    before = _held(box)
    for _ in range(3):
        box.run(["true"])
        box.run(["sh", "-c", "exec sleep 1000"], seconds=0.0)
    assert wait_for(
        lambda: _held(box)[0] <= before[0] and _held(box)[1] <= before[1]
    )  # its threads may still be ending
    assert _held(box)[2] == ""


def _held(box: Box) -> tuple[int, int, str]:
    """Descriptors, threads and children."""
    folder = Path(f"/proc/{box.process.pid}")
    children = "".join(path.read_text() for path in folder.glob("task/*/children"))
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())), children
