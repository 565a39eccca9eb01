"""The folder of the packed cache: its entries, how much they may take, and how they are deleted.

GLM4_PACKED_CACHE_GB limits the folder (default 30; 0 turns it off); the least recently used entries go first. An entry
is renamed before it is deleted, so that a reader never sees part of one.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.checkpoints.json_file import read_json_object
from glm4.errors import CheckpointError, InvalidRequestError
from glm4.hub.store import home
from glm4.system.atomic_folder import remove_abandoned

DEFAULT_LIMIT_GB = 30.0
IDENTITY_FILE = "identity.json"
_SPARE_DISK = 5_000_000_000


@dataclass(frozen=True)
class CacheEntry:
    """One packed model: where, how large, when last used (seconds since the epoch), and the original's path."""

    path: Path
    nbytes: int
    used: float
    model: str
    precision: str


def cache_folder() -> Path:
    """The folder of all entries, which may not exist."""
    return home() / "packed"


def cache_limit() -> int:
    """Maximum bytes of all entries together: GLM4_PACKED_CACHE_GB; 0 turns the cache off.

    Raises:
        InvalidRequestError: the variable is not a number of 0 or more.
    """
    text = os.environ.get("GLM4_PACKED_CACHE_GB") or str(DEFAULT_LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise InvalidRequestError(f"GLM4_PACKED_CACHE_GB must be a number of gigabytes (0 is off), not {text!r}")
    return int(gigabytes * 1e9)


def cache_entries() -> list[CacheEntry]:
    """All entries, least recently used first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in cache_folder().iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                with contextlib.suppress(OSError):
                    found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry.used)


def _entry(folder: Path) -> CacheEntry:
    record = read_record(folder)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return CacheEntry(
        folder, size, folder.stat().st_mtime, str(record.get("model", "")), str(record.get("precision", ""))
    )


def read_record(entry: Path) -> dict[str, Any]:
    """What an entry was made from; empty if its record is damaged."""
    try:
        return read_json_object(entry / IDENTITY_FILE)
    except CheckpointError:
        return {}


def clear_cache(of: Path | None = None) -> int:
    """Delete every entry, or those whose original is in the folder `of`; returns the bytes freed.

    Programs that run one of them continue: the file lives until they end.
    """
    freed = 0
    for entry in cache_entries():
        if of is None or Path(entry.model).is_relative_to(of.resolve()):
            discard(entry.path)
            freed += entry.nbytes
    if of is None:
        remove_abandoned(cache_folder())
    return freed


def discard(entry: Path) -> None:
    """Delete an entry, and nothing outside the cache. `remove_abandoned` removes what a killed process leaves of it."""
    if entry.parent == cache_folder():
        gone = entry.with_name(f".{entry.name}.old-{os.getpid()}-{time.monotonic_ns()}")
        with contextlib.suppress(OSError):
            entry.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def make_room(nbytes: int, limit: int) -> bool:
    """Delete the least recently used entries until `nbytes` more fit; False if the disk is too full."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    if shutil.disk_usage(folder).free < 2 * nbytes + _SPARE_DISK:
        return False
    entries = cache_entries()
    total = sum(entry.nbytes for entry in entries)
    for entry in entries:
        if total + nbytes <= limit:
            break
        discard(entry.path)
        total -= entry.nbytes
    return True
