"""KV stores for tests: of one cache, and without waiting for their thread."""

from __future__ import annotations

from pathlib import Path

from glm4.loading.kv_folder import PageFolder
from glm4.loading.kv_store import KVStore
from glm4.model.kv_cache import KVCache


def kv_store(
    cache: KVCache,
    folder: Path,
    facts: object = "model",
    *,
    rounds: bool = False,
    min_tokens: int = 0,
    limit: int = 1 << 30,
) -> KVStore:
    return KVStore(cache, PageFolder(folder, limit), facts, round_pages=rounds, min_tokens=min_tokens)


def settle(store: object) -> None:
    """Wait until everything is written."""
    assert isinstance(store, KVStore)
    while (thread := store._thread) is not None:
        thread.join()


def page_files(folder: Path) -> list[Path]:
    """The files of all pages, most recently used first: those of one prompt in its order."""
    return sorted(folder.glob("??/*.kv"), key=lambda file: -file.stat().st_mtime_ns)
