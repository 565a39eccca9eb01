"""Keeps the packed form of a model whose weights had to be converted, so that its next start only maps a file.

Layout: `packed/<key>/` under GLM4_HOME, each a packed checkpoint (see `glm4.checkpoints.packed_format`) with an
`identity.json` that says what it was made from. The key is a digest of the source files (path, size, modification
time, first megabyte), the precision, the code that reads checkpoints, and what the kernels pack a test matrix to: a
changed file or a better quantizer finds no entry and makes a new one.

GLM4_PACKED_CACHE_GB bounds the folder (default 30; 0 turns it off); the least recently used entries go first. An entry
is written in the background after the first load, only if the disk stays ample, and appears by a rename. By a rename it
also goes, so that nobody ever reads a part of one. A damaged entry, or one that lacks a file or has one of another size
than was written, is deleted and the original loaded.

Does not cover: an original that is changed without changing size, modification time and first megabyte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.locate import locate_weights
from glm4.checkpoints.packed_format import FORMAT_VERSION, geometry, packed_shapes
from glm4.errors import CheckpointError, Glm4Error, InvalidRequestError, OutOfMemoryError
from glm4.hub.store import home
from glm4.kernels.base import Kernels
from glm4.kernels.formats import PackedWeight
from glm4.kernels.group_codes import GroupCodes, pack_codes
from glm4.loading.packed_folder import Part, folder_nbytes, write_packed_checkpoint
from glm4.loading.weights import canonical_tensors
from glm4.model.precision import (
    PRECISIONS,
    STORED,
    Precision,
    named_precision,
    resolve_precision,
    stored_precision,
)
from glm4.model.transformer import Transformer
from glm4.system.atomic_folder import atomic_folder, remove_abandoned
from glm4.system.memory import available_memory
from glm4.tokenizer import Tokenizer
from glm4.tokenizer.saved_table import VERSION as TABLE_VERSION
from glm4.variants import Variant

DEFAULT_LIMIT_GB = 30.0
IDENTITY_FILE = "identity.json"
_SIZES = "sizes"  # key of the bytes of every other file of the entry
_FOUR_BIT = "four_bit"  # key of the original's matrices of 4-bit codes, on which the meaning of "auto" depends

# Precisions worth keeping: those people run every day. fp32 and bf16 take the disk and serve comparisons.
_KEPT = (STORED, "int8", "int4")
_MIN_NBYTES = 64 << 20  # below this, packing again is as fast
_SPARE_DISK = 5_000_000_000
_HEAD_NBYTES = 1 << 20
# The code that an entry's weights, configuration, tokenizer and template depend on, beside what the kernels pack.
PACKAGE = Path(__file__).parents[1]
_READERS = (
    "checkpoints/*.py",
    "model/config.py",
    "loading/weights.py",
    "loading/packed_folder.py",
    "tokenizer/*.py",
    "variants.py",
)
_SOURCE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model")


@dataclass(frozen=True)
class CacheEntry:
    """One packed model: where, how large, when last used (seconds since the epoch), and the original's path."""

    path: Path
    nbytes: int
    used: float
    model: str
    precision: str


def cache_folder() -> Path:
    """The folder of all entries; it need not exist."""
    return home() / "packed"


def cache_limit() -> int:
    """Bytes the entries may take together: GLM4_PACKED_CACHE_GB; 0 is off.

    Raises:
        InvalidRequestError: the variable is no number of 0 or more.
    """
    text = os.environ.get("GLM4_PACKED_CACHE_GB") or str(DEFAULT_LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise InvalidRequestError(f"GLM4_PACKED_CACHE_GB must be a number of gigabytes, 0 for none, not {text!r}")
    return int(gigabytes * 1e9)


def cache_entries() -> list[CacheEntry]:
    """All entries, the least recently used first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in cache_folder().iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                with contextlib.suppress(OSError):
                    found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry.used)


def _entry(folder: Path) -> CacheEntry:
    try:
        record = read_json_object(folder / IDENTITY_FILE)
    except CheckpointError:
        record = {}
    return CacheEntry(
        path=folder,
        nbytes=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        used=folder.stat().st_mtime,
        model=str(record.get("model", "")),
        precision=str(record.get("precision", "")),
    )


def clear_cache(of: Path | None = None) -> int:
    """Delete every entry, or those whose original lies in the folder `of`; returns the bytes freed.

    Programs that run one of them go on: the file lives until they end.
    """
    freed = 0
    for entry in cache_entries():
        if of is None or Path(entry.model).is_relative_to(of.resolve()):
            _delete(entry.path)
            freed += entry.nbytes
    if of is None:
        remove_abandoned(cache_folder())
    return freed


class PackedCache:
    """The cache as seen from one model.

    Args:
        model: what `hub.resolve` gave: a folder or a file.
        kernels: the kernels that will run it.

    Raises:
        InvalidRequestError: GLM4_PACKED_CACHE_GB is no number.
    """

    def __init__(self, model: Path, kernels: Kernels) -> None:
        self._limit = cache_limit()
        self._identity = _identity(model) if self._limit else None
        self._kernels = kernels

    def _entry_folder(self, name: str) -> Path | None:
        """Where the entry of a kept precision is, or would be. Which matrices "stored" keeps follows from the files."""
        if self._identity is None:
            return None
        formats = ["int4", "int8"] if name == STORED else PRECISIONS[name].formats()
        facts = [self._identity, name, geometry(formats), FORMAT_VERSION, TABLE_VERSION, _code_digest(PACKAGE)]
        facts.append(_pack_digest(self._kernels, formats))
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return cache_folder() / key

    def find(self, dtype: str, variant: Variant | None) -> Checkpoint | None:
        """The packed form of the model for a dtype, opened; None if there is none that can be used."""
        for name in _KEPT if dtype == "auto" else (dtype,):
            folder = self._entry_folder(name) if name in _KEPT else None
            if folder is None or not _is_folder(folder):
                continue
            try:
                _check_files(folder)
                checkpoint = open_checkpoint(folder, variant=variant)
            except Glm4Error:
                discard(folder)
                continue
            if _is_what_would_be_loaded(dtype, name, checkpoint):
                with contextlib.suppress(OSError):
                    os.utime(folder)
                return checkpoint
            checkpoint.close()
        return None

    def keep(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, model: Transformer, precision: str
    ) -> BackgroundWrite | None:
        """Begin to write the model just loaded, if it is worth keeping and there is room; None if not."""
        folder = self._entry_folder(precision) if precision in _KEPT else None
        if folder is None or _is_folder(folder) or checkpoint.packed is not None:
            return None
        stored = checkpoint.stored_precision
        made = named_precision(precision, stored)
        nbytes = folder_nbytes(checkpoint, made)
        if not _MIN_NBYTES <= nbytes <= self._limit:
            return None
        record = {"model": str(checkpoint.path.resolve()), "precision": precision, "files": self._identity}
        record[_FOUR_BIT] = [] if stored is None else list(stored.exceptions)
        write = BackgroundWrite(folder, checkpoint, tokenizer, model, made, record)
        write.start(nbytes, self._limit)
        return write


def _is_folder(path: Path) -> bool:
    """Whether there is a folder; False where we may not look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def discard(folder: Path) -> None:
    """Delete a damaged entry (nothing outside the cache)."""
    if folder.parent == cache_folder():
        _delete(folder)


def _delete(entry: Path) -> None:
    """Delete an entry. What a killed process leaves of it is hidden, and `remove_abandoned` finds it."""
    gone = entry.with_name(f".{entry.name}.old-{os.getpid()}-{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _check_files(entry: Path) -> None:
    """Raise CheckpointError where an entry does not have the very files that were written, by name and size.

    Weights have checksums, and a tokenizer or configuration that is cut off is no JSON any more; but a chat template or
    sampling defaults that are missing would not be missed.
    """
    try:
        found = _sizes(entry)
    except OSError as error:  # another process has just deleted it
        raise CheckpointError(f"cannot look at {entry}: {error}") from error
    if read_json_object(entry / IDENTITY_FILE).get(_SIZES) != found:
        raise CheckpointError(f"{entry} is not as it was written")


def _sizes(entry: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in entry.iterdir() if file.name != IDENTITY_FILE}


def _is_what_would_be_loaded(dtype: str, name: str, checkpoint: Checkpoint) -> bool:
    """Whether `dtype` (perhaps "auto") means precision `name` for this model on this machine now."""
    if checkpoint.packed is None or checkpoint.packed.precision.name != name:
        return False
    try:
        stored = checkpoint.stored_precision or _recorded_stored(checkpoint.path)
        return resolve_precision(dtype, checkpoint.config, available_memory(), stored).name == name
    except OutOfMemoryError:
        return False


def _recorded_stored(entry: Path) -> Precision | None:
    """What dtype "stored" means for the original of an entry."""
    try:
        names = read_json_object(entry / IDENTITY_FILE).get(_FOUR_BIT)
    except CheckpointError:
        return None
    four_bit = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return stored_precision(four_bit) if four_bit else None


class BackgroundWrite:
    """Writes one entry on a thread of low priority, straight from the weights in memory."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        model: Transformer,
        precision: Precision,
        record: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._model = model
        self._precision = precision
        self._record = record
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="glm4-packed-cache")
        self._room = (0, 0)

    def start(self, nbytes: int, limit: int) -> None:
        """Begin.

        Args:
            nbytes: what the entry will take.
            limit: what all entries may take.
        """
        self._room = (nbytes, limit)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end; Ctrl-C gives the entry up."""
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self._cancelled.set()
            self._thread.join()

    def _run(self) -> None:
        # A cache may fail without a word: the model runs, and the next start tries again.
        with contextlib.suppress(OSError):
            _be_nice()
        with contextlib.suppress(OSError, Glm4Error, _CancelledError):
            if _make_room(*self._room):
                self._write()

    def _write(self) -> None:
        checkpoint = self._checkpoint
        with atomic_folder(self._folder) as partial:
            write_packed_checkpoint(
                partial, checkpoint, self._tokenizer, self._precision, self._parts(), checkpoint.path.resolve().name
            )
            record = {**self._record, _SIZES: _sizes(partial)}
            (partial / IDENTITY_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _parts(self) -> Iterator[Part]:
        config = self._checkpoint.config
        tensors = canonical_tensors(self._model.weights, config)
        for name in packed_shapes(config):
            if self._cancelled.is_set():
                raise _CancelledError
            tensor = tensors[name]
            yield name, tensor.data if isinstance(tensor, PackedWeight) else tensor


def _be_nice() -> None:
    """Let the model's own threads go first. Elsewhere a thread has no priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class _CancelledError(Exception):
    """The user does not want to wait for the cache."""


def _make_room(nbytes: int, limit: int) -> bool:
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
        _delete(entry.path)
        total -= entry.nbytes
    return True


def _identity(model: Path) -> list[Any] | None:
    """Path of the weights, and of every file that matters name, size, modification time and digest of its head."""
    try:
        kind, weights = locate_weights(model)
        files = _gguf_files(weights) if kind == "gguf" else _folder_files(weights)
        return [str(weights.resolve()), [_file_identity(file) for file in files]]
    except (OSError, Glm4Error):
        return None  # opening the original will say what is wrong


def _gguf_files(weights: Path) -> list[Path]:
    """The file, and all parts of a split model."""
    stem, separator, _ = weights.name.rpartition("-00001-of-")
    return sorted(weights.parent.glob(f"{_escaped(stem)}-*-of-*.gguf")) if separator else [weights]


def _escaped(text: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _folder_files(weights: Path) -> list[Path]:
    folder = weights if weights.is_dir() else weights.parent
    return sorted(file for file in folder.iterdir() if file.suffix in _SOURCE_SUFFIXES and file.is_file())


def _file_identity(file: Path) -> list[Any]:
    status = file.stat()
    with file.open("rb") as stream:
        head = hashlib.sha256(stream.read(_HEAD_NBYTES)).hexdigest()
    return [file.name, status.st_size, status.st_mtime_ns, head]


@cache
def _code_digest(package: Path) -> str:
    """Digest of the modules that turn files into what an entry holds: a repaired reader must not meet old results."""
    digest = hashlib.sha256()
    for pattern in _READERS:
        for file in sorted(package.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _pack_digest(kernels: Kernels, formats: Sequence[str]) -> str:
    """Digest of what the kernels make of a fixed matrix: another layout or rounding gives another key."""
    # A fixed formula rather than a random generator, whose stream may change between versions.
    values = np.sin(np.arange(64 * 64, dtype=np.float64) ** 1.5).astype(np.float32).reshape(64, 64)
    digest = hashlib.sha256()
    for name in formats:
        digest.update(kernels.pack(name, values).data.tobytes())
    if "int4" in formats:
        codes = GroupCodes(
            (np.arange(64 * 64).reshape(64, 64) * 7 % 16).astype(np.uint8), values[:, :2], values[:, 2:4]
        )
        digest.update(pack_codes(codes).data.tobytes())
    return digest.hexdigest()
