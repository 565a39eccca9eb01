"""Attacks from inside the sandbox: system calls and other processes."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Iterator

import pytest
from sandboxes import PLAIN_USER, Box, marker, running

from glm4.sandbox.seccomp import ARCHITECTURES, ENOSYS, EPERM, RULES

NAMES = {EPERM: "EPERM", ENOSYS: "ENOSYS"}


def test_each_denied_call_is_denied(box: Box) -> None:
    """Whatever its arguments: the filter answers before the kernel looks at them."""
    numbers = ARCHITECTURES[platform.machine()].numbers
    wanted = {
        name: NAMES[rules[0].errno] for name, rules in RULES.items() if name in numbers and not rules[0].tests
    }  # fmt: skip
    found = box.results(f"""
for name in {list(wanted)}:
    attempt(name, syscall, name, -1, -1, -1, -1, -1, -1)
""")
    assert found == wanted
    assert len(wanted) > 80


def test_no_namespace_is_made(box: Box) -> None:
    found = box.results("""
import signal
flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000,
         "cgroup": 0x2000000, "time": 0x80}
for name, flag in flags.items():
    attempt(f"unshare {name}", syscall, "unshare", flag)
    if name != "time":
        attempt(f"clone {name}", syscall, "clone", flag | signal.SIGCHLD, 0, 0, 0, 0)
attempt("enter", syscall, "setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0)
pid = os.fork()
if pid == 0:
    os._exit(7)
results["fork"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""")
    assert found.pop("fork") == 7  # children as such are allowed
    assert set(found.values()) == {"EPERM"}


def test_no_terminal_is_typed_into(box: Box) -> None:
    found = box.results("""
import fcntl, pty
first, second = pty.openpty()
attempt("type", fcntl.ioctl, second, 0x5412, b"x")
attempt("console", fcntl.ioctl, second, 0x541C, b"\\3")
attempt("high bits", syscall, "ioctl", second, 0x100005412, ctypes.c_char_p(b"x"))
attempt("other", fcntl.ioctl, second, 0x5413, bytes(8))
""")
    assert found == {"type": "EPERM", "console": "EPERM", "high bits": "EPERM", "other": "done"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other ways to call the kernel are those of x86-64")
@pytest.mark.parametrize(
    ("way", "status"), [("x32", 0), ("int 0x80", 128 + signal.SIGSYS)], ids=["x32", "32 bits"]
)  # fmt: skip
def test_no_other_way_to_call_the_kernel_evades_the_filter(box: Box, way: str, status: int) -> None:
    # mov eax, 20 (getpid of 32 bits); int 0x80; ret
    code = "b814000000cd80c3"
    outcome = box.python(f"""
import mmap
if {way!r} == "x32":
    NUMBERS["ptrace"] |= 0x40000000
    attempt("ptrace", syscall, "ptrace", 0, 0, 0, 0)
else:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex("{code}"))
    results["pid"] = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
""")
    assert outcome.status == status, outcome
    if way == "x32":
        assert outcome.results == {"ptrace": "ENOSYS"}


def test_the_first_process_cannot_be_changed_or_ended(box: Box) -> None:
    """It has no filter's exception, and its memory, by which it could be told to outlive this process, is closed."""
    found = box.results("""
import signal, time
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    attempt(number.name, os.kill, 1, number)
for name in ("mem", "environ", "maps", "stack", "syscall", "auxv"):
    attempt(name, lambda: open(f"/proc/1/{name}", "rb").read(1))
attempt("write", open, "/proc/1/mem", "r+b")
attempt("copy", open, "/sandbox/sh", "rb")
attempt("mode", os.chmod, "/sandbox/sh", 0o755)
attempt("trace", syscall, "ptrace", 16, 1, 0, 0)
time.sleep(0.1)
status = dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines() if ":\\t" in line)
results["filtered"] = status["Seccomp"].strip()
results["state"] = status["State"][0]
""")
    assert {found.pop(name) for name in ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGHUP")} == {"done"}
    assert found.pop("filtered") == "2"
    assert found.pop("state") == "S"
    assert set(found.values()) <= {"EACCES", "EPERM", "EROFS"}


@pytest.fixture
def bystander(box: Box) -> Iterator[int]:
    """A process outside, of the user who runs the sandbox."""
    user = None if os.geteuid() != 0 else 65534 if box.user == 0 else PLAIN_USER
    with subprocess.Popen(["sleep", "1000"], user=user) as process:
        assert process.pid > 10  # no number of a process inside
        yield process.pid
        assert process.poll() is None
        process.kill()


def test_processes_outside_cannot_be_reached(box: Box, bystander: int) -> None:
    found = box.results(f"""
import signal
for pid in ({bystander}, {os.getpid()}):
    attempt(f"kill {{pid}}", os.kill, pid, signal.SIGKILL)
    attempt(f"trace {{pid}}", syscall, "ptrace", 16, pid, 0, 0)
    attempt(f"read {{pid}}", syscall, "process_vm_readv", pid, 0, 0, 0, 0, 0)
    attempt(f"slow {{pid}}", os.setpriority, os.PRIO_PROCESS, pid, 19)
    attempt(f"handle {{pid}}", os.pidfd_open, pid)
    attempt(f"memory {{pid}}", open, f"/proc/{{pid}}/mem")
    attempt(f"processor {{pid}}", os.sched_setaffinity, pid, [0])
attempt("mine", os.sched_getaffinity, 0)
""")
    assert found.pop("mine") == "done"
    assert set(found.values()) <= {"ESRCH", "EPERM", "ENOENT"}


def test_killing_all_ends_only_itself(box: Box, bystander: int) -> None:
    word = marker()
    outcome = box.python(f"""
import signal, time
word = {word!r}
for _ in range(3):
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)
os.kill(-1, signal.SIGKILL)
results["alive"] = 1
""")
    assert outcome.status == 0
    assert outcome.results == {"alive": 1}
    assert bystander
    assert running(word) == []


def test_its_priority_only_falls(box: Box) -> None:
    found = box.results("""
attempt("nice", os.nice, -5)
attempt("real time", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
attempt("round robin", os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1))
attempt("input", syscall, "ioprio_set", 1, 0, 1 << 13) if "ioprio_set" in NUMBERS else None
attempt("lower", lambda: -os.nice(0) + os.nice(5))
import resource
for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE", "MEMLOCK"):
    number = getattr(resource, f"RLIMIT_{name}")
    soft, hard = resource.getrlimit(number)
    if hard >= 0:
        attempt(f"more {name}", resource.setrlimit, number, (hard + 1, hard + 1))
""")
    assert found.pop("lower") == 5
    assert set(found.values()) <= {"EPERM", "EACCES", "ValueError"}
    assert len(found) >= 7


def test_the_clock_and_the_name_stay(box: Box) -> None:
    name = os.uname().nodename
    found = box.results("""
import socket, time
attempt("clock", time.clock_settime, time.CLOCK_REALTIME, 0)
attempt("name", socket.sethostname, "mine")
""")
    assert found == {"clock": "EPERM", "name": "EPERM"}
    assert os.uname().nodename == name


def test_nothing_of_the_environment_or_descriptors_gets_in(box: Box) -> None:
    """The process that starts the sandbox has a secret in its environment, and descriptors that are inherited."""
    found = box.results("""
results["names"] = sorted(os.environ)
results["descriptors"] = sorted(map(int, os.listdir("/proc/self/fd")))
attempt("first", lambda: len(os.listdir("/proc/1/fd")))
results["command"] = open("/proc/1/cmdline").read().split(chr(0))[:2]
""")
    assert set(found["names"]) <= {"PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) <= 4  # and the one by which the folder is read
    assert found["first"] in ("EACCES", "EPERM")
    assert found["command"] == ["/sandbox/sh", "-c"]  # and not bubblewrap's, with paths of this machine


def test_threads_processes_and_libraries_still_work(box: Box) -> None:
    found = box.results("""
import subprocess, tempfile, threading
done = []
threads = [threading.Thread(target=done.append, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
results["threads"] = len(done)
results["output"] = subprocess.run(["sh", "-c", "echo $((6 * 7)) | cat"], capture_output=True, text=True).stdout.strip()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
results["callback"] = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(41)
""")
    assert found == {"threads": 8, "output": "42", "callback": 42}
