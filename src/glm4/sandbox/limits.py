"""What a sandbox may use, and what of this machine it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Limits:
    """What the processes of one sandbox may use.

    Attributes:
        memory_nbytes: of one process (address space), and of all together (resident memory and scratch files).
        cpu_seconds: processor time of all together; None: as much as they want until someone ends them.
        processes: processes and threads at once.
        file_nbytes: of one file.
        disk_nbytes: of what lies in one writable mount; a file or folder counts as 4 KiB at least.
        open_files: descriptors of one process.
    """

    memory_nbytes: int = 1 << 30
    cpu_seconds: int | None = None
    processes: int = 64
    file_nbytes: int = 64 << 20
    disk_nbytes: int = 256 << 20
    open_files: int = 256

    @property
    def scratch_nbytes(self) -> int:
        """Size of /tmp, and of /dev/shm, which lie in memory."""
        return self.memory_nbytes // 4


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine that the sandbox sees.

    Attributes:
        source: on this machine.
        target: its absolute path inside.
        writable: changes inside are changes of `source`.
    """

    source: Path
    target: str
    writable: bool = False

    def __post_init__(self) -> None:
        path = PurePosixPath(self.target)
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\0" in self.target:
            raise ValueError(f"target is an absolute path below /, not {self.target!r}")
