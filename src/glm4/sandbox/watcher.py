"""`ProcessTree`: all processes of one sandbox, watched from outside and ended together.

They are the pid namespace of one process, bubblewrap's first inside: when it ends, the kernel ends all others, whatever
they did to hide. Watched is what limits of single processes cannot bound: the sum of their memory and processor time,
their number, and what lies in writable folders.

Not covered: memory of the kernel (socket buffers, page tables), unless control groups are delegated to this process;
what is used up between two looks; on disk, files that are deleted but still on their way through a socket.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glm4.sandbox.control_group import ControlGroup
from glm4.sandbox.disk import usage
from glm4.sandbox.limits import Limits

_INTERVAL, _IDLE_INTERVAL = 0.05, 0.25
# A look at the disk may take long: at most this part of the time.
_DISK_SHARE = 0.1
_MAX_FAILURES = 20
_MAX_SCRATCH_FILES = 1 << 16
_SCRATCH = ("tmp", "dev/shm")  # inside


class ProcessTree:
    """See the module.

    Args:
        pid: the first process inside, which waits for a sign to go on.
        folders: sources of writable mounts.
        group: that the first process has joined.

    Attributes:
        exceeded: the limit for which the tree was ended: "memory", "processes", "cpu", "disk", or
            "unwatched" if the system does not let this process see them; None if for none.
        gone: set once no process is left.
    """

    def __init__(
        self, pid: int, limits: Limits, folders: Sequence[Path] = (), group: ControlGroup | None = None
    ) -> None:  # fmt: skip
        self.pid = pid
        self.exceeded: str | None = None
        self.gone = threading.Event()
        self._limits, self._folders, self._group = limits, folders, group
        self._handle = os.pidfd_open(pid)
        self._lock = threading.Lock()
        self._look_at_disk = 0.0
        self._root = Path(f"/proc/{pid}/root")
        self._ticks = os.sysconf("SC_CLK_TCK")

    def watch(self) -> None:
        """Start to watch, on a thread of its own."""
        threading.Thread(target=self._watch, name="glm4-sandbox", daemon=True).start()

    def kill(self) -> None:
        """End all processes; returns before they are gone."""
        self._send(self._handle, signal.SIGKILL)

    def interrupt(self) -> None:
        """SIGINT to the program that was started; nothing if it has ended."""
        with suppress(OSError):
            handle = self._program()
            if handle is not None:
                with os.fdopen(handle, closefd=True):
                    signal.pidfd_send_signal(handle, signal.SIGINT)

    def _send(self, handle: int, number: int) -> None:
        with self._lock, suppress(OSError):
            if not self.gone.is_set():
                signal.pidfd_send_signal(handle, number)

    def _program(self) -> int | None:
        """A descriptor of process 2 inside."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        for child in map(int, children):
            handle = os.pidfd_open(child)
            # Read after it was opened: the number may belong to another process by now.
            lines = Path(f"/proc/{child}/status").read_text(encoding="utf-8", errors="replace").splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields.get("PPid") == str(self.pid) and fields.get("NSpid", "").split()[-1:] == ["2"]:
                return handle
            os.close(handle)
        return None

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        interval, before, failures = _INTERVAL, 0.0, 0
        while not poll.poll(interval * 1000):
            try:
                exceeded, used = self._look()
                failures = 0
            except (OSError, ValueError):  # it ends just now, or it cannot be watched
                failures += 1
                exceeded, used = "unwatched" if failures > _MAX_FAILURES else None, 0.0
            if exceeded is not None:
                self.exceeded = exceeded
                self.kill()
            interval = _INTERVAL if used > before or exceeded or failures else _IDLE_INTERVAL
            before = used
        if self._group is not None:
            if self.exceeded is None and self._group.out_of_memory:
                self.exceeded = "memory"
            self._group.remove()
        with self._lock:
            self.gone.set()
            os.close(self._handle)

    def _look(self) -> tuple[str | None, float]:
        """The limit that is exceeded, and the processor time in seconds."""
        count, resident, ticks = 0, 0, 0
        pids = [name for name in os.listdir(self._root / "proc") if name.isdecimal()]  # noqa: PTH208  # names
        for pid in pids:
            with suppress(OSError, ValueError, IndexError):
                threads, nbytes, used = self._process(pid)
                count, resident, ticks = count + threads, resident + nbytes, ticks + used
        limits, seconds = self._limits, ticks / self._ticks
        scratch, files = self._scratch()
        if resident + scratch > limits.memory_nbytes:
            # Shared pages were counted once for each process. Exact, and slow:
            exact = sum(self._shared_fairly(pid) for pid in pids)
            if exact + scratch > limits.memory_nbytes:
                return "memory", seconds
        if count > limits.processes + 16:  # where the kernel counts itself, it refuses the first too many
            return "processes", seconds
        if limits.cpu_seconds is not None and seconds > limits.cpu_seconds:
            return "cpu", seconds
        if files > _MAX_SCRATCH_FILES or not self._disk_fits(pids):
            return "disk", seconds
        return None, seconds

    def _process(self, pid: str) -> tuple[int, int, int]:
        """(threads, bytes in memory that are no file's, clock ticks used, by ended children too)."""
        folder = self._root / "proc" / pid
        # The name in the second field is whatever the process likes.
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        nbytes = 0
        for line in (folder / "status").read_bytes().splitlines():
            if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
                nbytes += int(line.split()[1]) << 10
        return int(fields[17]), nbytes, sum(map(int, fields[11:15]))

    def _shared_fairly(self, pid: str) -> int:
        nbytes = 0
        with suppress(OSError, ValueError, IndexError):
            for line in (self._root / "proc" / pid / "smaps_rollup").read_bytes().splitlines():
                if line.startswith((b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")):
                    nbytes += int(line.split()[1]) << 10
        return nbytes

    def _scratch(self) -> tuple[int, int]:
        """Bytes and files in /tmp and /dev/shm, which nothing can replace or unmount inside."""
        nbytes, files = 0, 0
        for name in _SCRATCH:
            status = os.statvfs(self._root / name)
            nbytes += (status.f_blocks - status.f_bfree) * status.f_frsize
            files += status.f_files - status.f_ffree
        return nbytes, files

    def _disk_fits(self, pids: Sequence[str]) -> bool:
        begin = time.monotonic()
        if not self._folders or begin < self._look_at_disk:
            return True
        limit = self._limits.disk_nbytes
        deleted = sum(self._deleted(pid) for pid in pids)
        fits = all(usage(folder, limit) + deleted <= limit for folder in self._folders)
        taken = time.monotonic() - begin
        self._look_at_disk = begin + taken + max(0.1, taken / _DISK_SHARE)
        return fits

    def _deleted(self, pid: str) -> int:
        """Bytes of files that have no name any more, but are open."""
        nbytes = 0
        with suppress(OSError):
            folder = self._root / "proc" / pid / "fd"
            for name in os.listdir(folder):  # noqa: PTH208  # names
                with suppress(OSError):
                    if str((folder / name).readlink()).endswith(" (deleted)"):
                        status = (folder / name).stat()
                        if status.st_nlink == 0:
                            nbytes += status.st_blocks * 512
        return nbytes
