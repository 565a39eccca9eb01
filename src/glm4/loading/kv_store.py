"""`KVStore`: a model's pages in a folder, written by a thread of its own; what `engine.page_store.PageStore` asks for.

What pages depend on: the source files of the model (`source_identity`), its precision and configuration, the format
of the cache, the rounding, and our version and instruction set, because other kernels give slightly different numbers.

Does not cover: a disk that hangs. Reading is a part of the engine's steps, a few pages each, and would hang with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm4.errors import InvalidRequestError
from glm4.loading.kv_folder import PageFolder
from glm4.loading.kv_pages import Copies, PageCodec
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.version import __version__

log = logging.getLogger("glm4.kv_store")

# Raise this when the same tokens give other keys and values, or a page has other bytes.
FORMAT_VERSION = 1
STORE_DTYPES = ("int8", "native")
_QUEUE_NBYTES = 64 << 20


def check_store_dtype(dtype: str) -> None:
    """Refuse what is not one of `STORE_DTYPES`.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    if dtype not in STORE_DTYPES:
        raise InvalidRequestError(
            f"kv_store_dtype must be one of {', '.join(STORE_DTYPES)}, not {dtype!r}", param="kv_store_dtype"
        )


@dataclass(frozen=True)
class _Write:
    """Pages to write, and their keys; `parent` is the key of the page before them."""

    parent: bytes | None
    keys: Sequence[bytes]
    copies: Copies
    nbytes: int


class KVStore:
    """Pages of one cache on disk. `find`, `read` and `write` are for the thread that runs the engine.

    Args:
        facts: what keys and values depend on, beside the cache's format and our version; anything that JSON can hold.
        round_pages, min_tokens: see `PageCodec` and `PageStore`, as for the other attributes.
    """

    def __init__(
        self, cache: KVCache, folder: PageFolder, facts: object, *, round_pages: bool = True, min_tokens: int = 512
    ) -> None:
        self._folder = folder
        self._codec = PageCodec(cache, round_pages)
        form = [FORMAT_VERSION, __version__, sys.byteorder, PAGE_SIZE, cache.kv_dtype, self._codec.rounds]
        self.identity = json.dumps([form, facts], sort_keys=True)
        self.min_tokens = min_tokens
        self.page_nbytes = self._codec.page_nbytes
        self.num_written_pages = 0
        self._queue: deque[_Write] = deque()
        self._queued_nbytes = 0
        self._closed = False
        self._lock = threading.Lock()
        # Not a daemon, and it ends with its work: so a program that ends without `close` loses nothing.
        self._thread: threading.Thread | None = None
        self._start(self._count)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages in the folder, as far as known."""
        return self._folder.nbytes

    def find(self, keys: Sequence[bytes]) -> int:
        """See `PageStore`."""
        return self._folder.touch(keys)

    def read(self, keys: Sequence[bytes], pages: Sequence[int]) -> int:
        """See `PageStore`."""
        for index, (key, page) in enumerate(zip(keys, pages, strict=True)):
            content = self._folder.read(key, self._codec.nbytes)
            if content is None:
                return index
            self._codec.decode(content, page)
        return len(pages)

    def write(self, keys: Sequence[bytes], first: int, pages: Sequence[int]) -> int:
        """See `PageStore`; takes what has room in the queue."""
        with self._lock:
            if self._closed:
                return len(pages)
            room = (_QUEUE_NBYTES - self._queued_nbytes) // self.page_nbytes
            count = min(len(pages), room if self._queue else max(1, room))
            if count <= 0:
                return 0
            parent = keys[first - 1] if first else None
            try:
                copies = self._codec.copy(pages[:count])
            except MemoryError:
                return 0
            nbytes = count * self.page_nbytes
            self._queue.append(_Write(parent, keys[first : first + count], copies, nbytes))
            self._queued_nbytes += nbytes
            if self._thread is None:
                self._start(self._write_queued)
        return count

    def wait(self, seconds: float) -> None:
        """See `PageStore`."""
        thread = self._thread
        if thread is not None:  # it ends with its work
            thread.join(seconds)

    def close(self) -> None:
        """Finish writing; Ctrl-C abandons what is left."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is None:
            return
        try:
            thread.join()
        except KeyboardInterrupt:
            with self._lock:
                self._queue.clear()
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="glm4-kv-store")
        self._thread.start()

    def _count(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.count()
        self._write_queued()

    def _write_queued(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                item = self._queue.popleft()
            try:
                self._write(item)
            except Exception:  # of a page's own, MemoryError above all: the next one may work
                log.warning("pages were not kept in the KV store", exc_info=True)
            finally:
                with self._lock:
                    self._queued_nbytes -= item.nbytes

    def _write(self, item: _Write) -> None:
        parent = item.parent
        for index, key in enumerate(item.keys):
            content = self._codec.encode(item.copies, index)
            if content is None:
                return
            self.num_written_pages += self._folder.write(key, parent, content)
            parent = key
