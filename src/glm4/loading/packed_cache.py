"""Keeps the packed form of a model whose weights had to be converted, so that the next start only maps a file.

Layout: `packed/<key>/` under GLM4_HOME, each a packed checkpoint (see `glm4.checkpoints.packed_format`) with an
`identity.json` that says what it was made from. The key is a digest of the source files (path, size, modification
time, first megabyte), the precision, and the version numbers of what an entry holds. Packing gives the same bytes on
every instruction set, so no entry depends on the machine.

An entry is written in the background after the first load, only if the disk has plenty of room, and appears by a
rename. A damaged entry, or one with a file missing or of the wrong size, is deleted and the original loaded.

Does not cover: an original that changes without changing size, modification time and first megabyte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.checkpoints.packed_format import FORMAT_VERSION, packed_shapes
from glm4.errors import CheckpointError, Glm4Error, OutOfMemoryError
from glm4.kernels.formats import PackedWeight
from glm4.loading.cache_entries import IDENTITY_FILE, cache_folder, cache_limit, discard, make_room, read_record
from glm4.loading.memory_estimate import Wanted, choose_precision
from glm4.loading.packed_folder import Part, folder_nbytes, write_packed_checkpoint
from glm4.loading.source_identity import source_identity
from glm4.model.precision import STORED, Precision, named_precision, short_dtype, stored_precision
from glm4.model.transformer import Transformer
from glm4.system.atomic_folder import atomic_folder
from glm4.system.memory import Room
from glm4.tokenizer import Tokenizer
from glm4.tokenizer.saved_table import VERSION as TABLE_VERSION
from glm4.variants import Variant

# Raise this when the same original gives a different entry that is still of FORMAT_VERSION: a better rounding, a fixed
# reader. `tests/loading/test_packed_bytes.py` fails if that is forgotten.
ENTRY_VERSION = 3
VERSIONS = (FORMAT_VERSION, TABLE_VERSION, ENTRY_VERSION)
_SIZES = "sizes"  # key of the sizes of every other file of the entry
_FOUR_BIT = "four_bit"  # key of the original's 4-bit matrices, on which the meaning of "auto" depends

# Precisions worth keeping: those used every day. fp32 and bf16 take much disk and serve comparisons.
_KEPT = (STORED, "int8", "int4")
_MIN_NBYTES = 64 << 20  # below this, packing again is as fast


class PackedCache:
    """The cache as seen from one model.

    Args:
        model: what `hub.resolve` returned: a folder or a file.

    Raises:
        InvalidRequestError: GLM4_PACKED_CACHE_GB is not a number.
    """

    def __init__(self, model: Path) -> None:
        self._limit = cache_limit()
        self._identity = source_identity(model) if self._limit else None

    def _folder(self, precision: str) -> Path | None:
        """Where the entry of a kept precision is, or would be. The files determine which matrices "stored" keeps."""
        if self._identity is None or precision not in _KEPT:
            return None
        facts = json.dumps([self._identity, precision, VERSIONS], sort_keys=True)
        return cache_folder() / hashlib.sha256(facts.encode()).hexdigest()[:32]

    def kept(self) -> list[str]:
        """The precisions that there are entries of."""
        folders = {name: self._folder(name) for name in _KEPT}
        return [name for name, folder in folders.items() if folder is not None and os.path.isdir(folder)]  # noqa: PTH112

    def find(self, wanted: Wanted, variant: Variant | None) -> Checkpoint | None:
        """The packed form of the model for what is wanted, opened; None if there is no usable one."""
        kept, dtype = self.kept(), short_dtype(wanted.dtype)
        for name in kept if dtype == "auto" else (dtype,):
            folder = self._folder(name)
            if folder is None or name not in kept:
                continue
            try:
                _check_files(folder)
                checkpoint = open_checkpoint(folder, variant=variant)
            except Glm4Error:
                discard(folder)
                continue
            if _is_what_would_be_loaded(wanted, name, checkpoint, kept):
                with contextlib.suppress(OSError):
                    os.utime(folder)
                return checkpoint
            checkpoint.close()
        return None

    def keep(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, model: Transformer, precision: str
    ) -> BackgroundWrite | None:
        """Start writing the model just loaded, if it is worth keeping and there is room; None if not."""
        folder = self._folder(precision)
        if folder is None or os.path.isdir(folder) or checkpoint.packed is not None:  # noqa: PTH112
            return None
        stored = checkpoint.stored_precision
        made = named_precision(precision, stored)
        nbytes = folder_nbytes(checkpoint, made)
        if not _MIN_NBYTES <= nbytes <= self._limit:
            return None
        record = {"model": str(checkpoint.path.resolve()), "precision": precision, "files": self._identity}
        record[_FOUR_BIT] = [] if stored is None else list(stored.exceptions)
        write = BackgroundWrite(folder, checkpoint, tokenizer, made, record, nbytes, self._limit)
        write.start(model)
        return write


def _check_files(entry: Path) -> None:
    """Raise CheckpointError unless an entry has exactly the files that were written, by name and size.

    Weights have checksums, and a truncated tokenizer or configuration is no longer JSON; but nothing else would notice
    a missing chat template or missing sampling defaults.
    """
    try:
        found = _sizes(entry)
    except OSError as error:  # another process has just deleted it
        raise CheckpointError(f"cannot read {entry}: {error}") from error
    if read_record(entry).get(_SIZES) != found:
        raise CheckpointError(f"{entry} has changed since it was written")


def _sizes(entry: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in entry.iterdir() if file.name != IDENTITY_FILE}


def _is_what_would_be_loaded(wanted: Wanted, name: str, checkpoint: Checkpoint, kept: Collection[str]) -> bool:
    """Whether the dtype (perhaps "auto") means precision `name` for this model on this machine now."""
    if checkpoint.packed is None or checkpoint.packed.precision.name != name:
        return False
    names = read_record(checkpoint.path).get(_FOUR_BIT)
    four_bit = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    stored = stored_precision(four_bit) if four_bit else checkpoint.stored_precision
    try:
        return choose_precision(checkpoint.config, wanted, Room.here(), stored, kept).precision.name == name
    except OutOfMemoryError:
        return False


@dataclass
class BackgroundWrite:
    """Writes one entry on a low-priority thread, straight from the weights in memory.

    Attributes:
        nbytes: size of the entry.
        limit: maximum size of all entries.
    """

    folder: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    precision: Precision
    record: Mapping[str, Any]
    nbytes: int
    limit: int

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, model: Transformer) -> None:
        """Start writing; the thread holds the weights until it ends, this object never does."""
        self._thread = threading.Thread(target=self._run, args=(model,), name="glm4-packed-cache")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end; Ctrl-C abandons the entry."""
        if self._thread is None:
            return
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self._cancelled.set()
            self._thread.join()

    def _run(self, model: Transformer) -> None:
        # A cache may fail silently: the model runs, and the next start tries again.
        with contextlib.suppress(OSError):
            if sys.platform == "linux":  # the model's own threads take precedence; elsewhere threads have no priority
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        with contextlib.suppress(OSError, Glm4Error, _CancelledError):
            if make_room(self.nbytes, self.limit):
                self._write(model)

    def _write(self, model: Transformer) -> None:
        checkpoint, name = self.checkpoint, self.checkpoint.path.resolve().name
        with atomic_folder(self.folder) as partial:
            write_packed_checkpoint(partial, checkpoint, self.tokenizer, self.precision, self._parts(model), name)
            record = json.dumps({**self.record, _SIZES: _sizes(partial)}, indent=2)
            (partial / IDENTITY_FILE).write_text(record + "\n", encoding="utf-8")

    def _parts(self, model: Transformer) -> Iterator[Part]:
        for name in packed_shapes(self.checkpoint.config):
            if self._cancelled.is_set():
                raise _CancelledError
            tensor = model.weights.tensors[name]
            yield name, tensor.data if isinstance(tensor, PackedWeight) else tensor


class _CancelledError(Exception):
    """The user chose not to wait for the cache."""
