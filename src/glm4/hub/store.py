"""The folder of pulled starter models: layout, lock, disk space, licenses, what is installed.

Layout under `home()`:
    models/.<name>.lock         held while a pull of <name> runs; never deleted, so it cannot go stale
    models/<name>/model.gguf    complete and verified: it appears under this name only by a rename
    models/<name>/source.json   written last; its presence with the right hash means "installed"
    models/<name>/LICENSE NOTICE
    models/<name>/model.gguf.partial, .parts/    a download that is running or was interrupted
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from glm4.errors import DiskFullError, DownloadError
from glm4.hub.starter_sources import StarterSource
from glm4.system.text_encoding import read_text

Progress = Callable[[str, float, float], None]
"""`report(stage, done, total)`, in bytes; a total of 0 means unknown."""

MODEL_FILE = "model.gguf"
PARTIAL_FILE = "model.gguf.partial"
PARTS_FOLDER = ".parts"
_CHUNK = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def home() -> Path:
    """The folder for everything glm4 keeps: GLM4_HOME, else `glm4` in XDG_CACHE_HOME, else ~/.cache/glm4."""
    if chosen := os.environ.get("GLM4_HOME"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "glm4"


def model_folder(name: str) -> Path:
    """The folder of a starter model, which may not exist."""
    return home() / "models" / name


def source_record(name: str) -> Mapping[str, Any]:
    """The source.json of an installed starter model; empty if it is missing or unreadable."""
    try:
        record = json.loads(read_text(model_folder(name) / "source.json"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def installed_file(source: StarterSource) -> Path | None:
    """The model file if it is installed and verified, else None. Reads no weights."""
    file = model_folder(source.name) / MODEL_FILE
    with contextlib.suppress(OSError):
        if source_record(source.name).get("sha256") == source.sha256 and file.stat().st_size == source.nbytes:
            return file
    return None


def license_text(name: str) -> str | None:
    """The text of a license by its short name (a variant's `license`); None if this package does not have it."""
    from importlib import resources

    file = resources.files("glm4.hub") / "licenses" / f"{name}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def finish(source: StarterSource, file: Path, origin: Mapping[str, Any]) -> Path:
    """Make a verified file the installed model: write the documents, rename, then write source.json.

    Args:
        file: complete and verified, in the model's folder.
        origin: where it came from, for source.json.
    """
    folder = model_folder(source.name)
    write_text(folder / "LICENSE", license_text(source.license) or source.license)
    write_text(folder / "NOTICE", _notice(source))
    target = folder / MODEL_FILE
    with file.open("rb") as stream:
        os.fsync(stream.fileno())  # the name must not reach the disk before the bytes
    if file != target:
        file.replace(target)
    record = {
        "name": source.name,
        "model": source.model,
        "file": MODEL_FILE,
        "bytes": source.nbytes,
        "sha256": source.sha256,
        "license": source.license,
        "source": dict(origin),
        "installed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_text(folder / "source.json", json.dumps(record, indent=2) + "\n")
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
    (folder / PARTIAL_FILE).unlink(missing_ok=True)
    return target


def _notice(source: StarterSource) -> str:
    return (
        f"{source.model}\n"
        f"Copyright: {source.authors}\n"
        f"Origin: {source.origin}\n"
        f"License: {source.license}, full text in the file LICENSE beside this one\n"
        f"Changes: {source.changes}\n"
    )


def write_text(file: Path, text: str) -> None:
    """Write a small file so that it appears complete or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with disk_full(file.parent, len(text)), temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def remove(name: str) -> int:
    """Delete a starter model and any partial downloads; returns the bytes freed (0 if it was not there)."""
    folder = model_folder(name)
    if not folder.exists():
        return 0
    with lock(name):
        freed = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        (folder / "source.json").unlink(missing_ok=True)  # first: a half-deleted model must not look installed
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise DownloadError(f"cannot delete {folder}: {error.strerror or error}") from error
    return freed


@contextlib.contextmanager
def lock(name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the pull lock of a model. The kernel frees it when its holder ends, for whatever reason.

    Args:
        waiting: called repeatedly while another process holds the lock, so that a log file shows the reason.
    """
    path = home() / "models" / f".{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise DownloadError(
            f"cannot write to {path.parent}: {error.strerror or error}. Set GLM4_HOME to a folder you can write to."
        ) from error
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                time.sleep(0.2)
            except OSError:
                break  # a file system without locks; renames still keep the result whole
        yield


def check_disk_space(folder: Path, needed: int) -> None:
    """Refuse a download that does not fit.

    Raises:
        DiskFullError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(_no_room(folder, needed, free))


@contextlib.contextmanager
def disk_full(folder: Path, needed: int) -> Iterator[None]:
    """Turn the operating system's "no space left" into a DiskFullError that says how much is missing.

    Args:
        needed: bytes still to be written when the block starts.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFullError(_no_room(folder, needed, shutil.disk_usage(folder).free)) from error


def _no_room(folder: Path, needed: int, free: int) -> str:
    message = f"no room in {folder}: {_megabytes(needed)} more are needed and {_megabytes(free)} are free"
    if free < needed:
        message += f", {_megabytes(needed - free)} are missing"
    else:
        message += " (a quota or a file size limit applies)"
    return (
        f"{message}. Free some space, or set GLM4_HOME to a folder on another disk, and run the same command again; "
        "what was fetched is kept."
    )


def _megabytes(count: int) -> str:
    return f"{-(-count // 1_000_000):,} MB"


def sha256_file(file: Path, progress: Progress | None = None, stage: str = "checking") -> str:
    """Hex sha256 of a file; `progress` counts bytes."""
    total = file.stat().st_size
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    done = 0
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if progress is not None:
                progress(stage, done, total)
    return digest.hexdigest()
