"""The command line of bubblewrap: what the sandbox sees of this machine, and as whom it runs.

A process of root starts bubblewrap as another user, so that what escapes is nobody. That user may be unable to reach a
folder that the sandbox is to see (one in /root, say); then it is mounted once more, where it can be reached, in a mount
namespace that only bubblewrap has.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from glm4.errors import SandboxUnavailableError
from glm4.sandbox.limits import Limits, Mount

USER_VARIABLE = "GLM4_SANDBOX_UID"
_NOBODY = 65534

# Inside, the user is always this one.
INNER_ID = 1000
_PASSWD = f"sandbox:x:{INNER_ID}:{INNER_ID}::/tmp:/bin/sh\n".encode()
_GROUP = f"sandbox:x:{INNER_ID}:\n".encode()

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108  # its own
_SCRATCH = ("/tmp", "/dev/shm")  # noqa: S108  # inside
_STAGE = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'

# The first process inside, which starts the program and collects what the program leaves behind: a shell, whose file
# nobody inside may read. To the kernel its memory is a secret then, so that the program cannot change what it does: it
# is the one that must end with this process. It waits for a sign, as nothing must run if this process ended before
# bubblewrap knew that it has to end with it.
_INIT = "/sandbox/sh"
_INIT_SCRIPT = 'trap : HUP INT QUIT TERM; read -r go || exit 1; "$@"; exit $?'
GO = b"go\n"

_stage: tempfile.TemporaryDirectory[str] | None = None


def sandbox_user() -> int | None:
    """The user who runs bubblewrap: None is the user of this process, who is not root.

    Raises:
        SandboxUnavailableError: GLM4_SANDBOX_UID names root or no number.
    """
    if os.geteuid() != 0:
        return None
    text = os.environ.get(USER_VARIABLE, str(_NOBODY))
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise SandboxUnavailableError(f"{USER_VARIABLE} is the number of a user other than root, not {text!r}")
    return int(text)


def give_to_sandbox(folder: Path) -> None:
    """Make a folder and all in it belong to the user the sandbox runs as; a sandbox must not be using it.

    Does nothing where that is the user of this process. Follows no symbolic link.
    """
    user = sandbox_user()
    if user is None:
        return
    os.chown(folder, user, user, follow_symlinks=False)
    for _, folders, files, handle in os.fwalk(folder):
        for name in (*folders, *files):
            os.chown(name, user, user, dir_fd=handle, follow_symlinks=False)


@dataclass
class Descriptors:
    """Descriptors that bubblewrap inherits; `close` those of this process after its start."""

    opened: list[int] = field(default_factory=list)

    def file(self, content: bytes) -> str:
        """The number of a descriptor from which `content` can be read."""
        handle = os.memfd_create("glm4-sandbox")
        self.opened.append(handle)
        with open(handle, "wb", closefd=False) as file:  # a descriptor
            file.write(content)
        os.lseek(handle, 0, os.SEEK_SET)
        return str(handle)

    def close(self) -> None:
        """Close them here."""
        while self.opened:
            os.close(self.opened.pop())


def bubblewrap_command(
    command: Sequence[str], mounts: Sequence[Mount], environment: Mapping[str, str], limits: Limits,
    working_directory: str, descriptors: Descriptors, extra: Sequence[str],
) -> list[str]:  # fmt: skip
    """What to run, as the user of this process; of root it changes to that of `sandbox_user` itself.

    Args:
        extra: more options of bubblewrap.

    Raises:
        SandboxUnavailableError: a program that is needed is missing.
        FileNotFoundError: the source of a mount.
    """
    bubblewrap, user = _program("bwrap"), sandbox_user()
    sources = {mount.source: mount.source.resolve(strict=True) for mount in mounts}
    hidden = [] if user is None else [path for path in dict.fromkeys(sources.values()) if not _reachable(path, user)]
    staged = {path: _staging_place(i, folder=path.is_dir()) for i, path in enumerate(hidden)}

    options = [*_ISOLATION, *_system(), *extra]
    options += ["--ro-bind-data", descriptors.file(_PASSWD), "/etc/passwd"]
    options += ["--ro-bind-data", descriptors.file(_GROUP), "/etc/group"]
    options += ["--perms", "0111", "--ro-bind-data", descriptors.file(Path("/bin/sh").read_bytes()), _INIT]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in _SCRATCH:
        options += ["--perms", "1777", "--size", str(limits.scratch_nbytes), "--tmpfs", folder]
    for mount in sorted(mounts, key=lambda mount: len(PurePosixPath(mount.target).parts)):
        source = sources[mount.source]
        options += ["--bind" if mount.writable else "--ro-bind", str(staged.get(source, source)), mount.target]
    options += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", working_directory]
    for name, value in {**_ENVIRONMENT, **environment}.items():
        options += ["--setenv", name, value]

    # By a descriptor: the command line of the first process inside can be read there.
    listed = b"".join(os.fsencode(option) + b"\0" for option in options)
    inside = [*_limited(limits), _INIT, "-c", _INIT_SCRIPT, "sh", *command]
    run = [bubblewrap, "--args", descriptors.file(listed), "--", *inside]
    if user is not None:
        # Not by `subprocess`, which then copies the page tables of this process; with a model in it they are large.
        run = [_program("setpriv"), "--reuid", str(user), "--regid", str(user), "--clear-groups", "--", *run]
    if staged:
        pairs = [str(path) for pair in staged.items() for path in pair]
        run = [_program("unshare"), "--mount", "--", "/bin/sh", "-c", _STAGE, "sh", *pairs, "--", *run]
    return run


_ISOLATION = (
    "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent", "--cap-drop", "ALL",
    "--clearenv", "--as-pid-1", "--uid", str(INNER_ID), "--gid", str(INNER_ID), "--hostname", "sandbox",
)  # fmt: skip


def _system() -> list[str]:
    """/usr, and what belongs to it elsewhere."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        options += ["--ro-bind-try", name, name]
    return options


def _limited(limits: Limits) -> list[str]:
    """What gives the limits to a program, inside: from outside, not every root may set those of another user."""
    options = [
        f"--as={limits.memory_nbytes}", f"--fsize={limits.file_nbytes}", f"--nofile={limits.open_files}",
        "--core=1",  # not even to a program of the system that takes core dumps, as 0 would allow
        "--memlock=0", "--msgqueue=0", "--rtprio=0", "--nice=0",
    ]  # fmt: skip
    if limits.cpu_seconds is not None:
        options.append(f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}")
    release = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    if release >= [5, 14]:  # before, what the user runs elsewhere counts, too
        options.append(f"--nproc={limits.processes}")
    return [_program("prlimit"), *options, "--"]


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is not None:
        return path
    if name == "bwrap":
        raise SandboxUnavailableError(
            "bubblewrap is not installed; install it with your system's package manager (apt install bubblewrap, "
            "dnf install bubblewrap, pacman -S bubblewrap)"
        )
    raise SandboxUnavailableError(f"the program {name} is not installed; it is part of util-linux")


def _reachable(path: Path, user: int) -> bool:
    """Whether a user without groups may pass the folders above a path."""
    for folder in path.parents:
        status = folder.stat()
        bit = stat.S_IXUSR if status.st_uid == user else stat.S_IXGRP if status.st_gid == user else stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True


def _staging_place(number: int, *, folder: bool) -> Path:
    """An empty folder or file over which something can be mounted."""
    global _stage  # noqa: PLW0603  # made once
    if _stage is None:
        _stage = tempfile.TemporaryDirectory(prefix="glm4-sandbox-", dir="/tmp")  # a name of its own
        Path(_stage.name).chmod(0o711)
    place = Path(_stage.name, f"{number}-{'folder' if folder else 'file'}")
    if folder:
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    return place
