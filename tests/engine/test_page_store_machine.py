"""The machine of `test_pages` with a KV store, whose files are damaged and deleted meanwhile: answers never change."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from test_pages import ADAPTERS, PageMachine

from glm4.engine.page_store import StoredPrefixes
from glm4.loading.kv_store import KVStore
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from kv_stores import kv_store, page_files, settle


class StoredPageMachine(PageMachine):
    """As `PageMachine`; pages come back from the disk, one per step."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    def store(self, cache: KVCache) -> KVStore:
        return kv_store(cache, self.folder)

    @property
    def stored(self) -> StoredPrefixes:
        assert self.engine._stored is not None
        return self.engine._stored

    def _step(self) -> None:
        self.stored._most_read = self.stored._most_copied = 1
        super()._step()
        settle(self.stored.store)

    @rule(kind=st.integers(0, 2), length=st.integers(70, 110), adapter=st.sampled_from([None, None, *ADAPTERS]))
    def add_long(self, kind: int, length: int, adapter: str | None) -> None:
        virtual = 0 if adapter is None else ADAPTERS[adapter].num_virtual_tokens
        if self.pages * PAGE_SIZE > virtual + length + 5:
            self.add(kind=kind, length=length, new=5, greedy=True, adapter=adapter)
            self.step(steps=8)

    @rule()
    def forget(self) -> None:
        """Everybody starts over, with nothing in memory."""
        while self.engine.scheduler.running:
            self.preempt()
        self.evict()
        self.step(steps=2)

    @rule(which=st.integers(0, 9), size=st.integers(0, 3000))
    def truncate(self, which: int, size: int) -> None:
        for file in page_files(self.folder)[which : which + 1]:
            os.truncate(file, size)

    @rule(which=st.integers(0, 9))
    def delete(self, which: int) -> None:
        for file in page_files(self.folder)[which : which + 1]:
            file.unlink()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestStoredPageMachine = StoredPageMachine.TestCase
TestStoredPageMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
