"""`PageStore`: pages of prompts kept outside memory, and the part of a step that fills pages from there and keeps them.

A page's key is a digest of everything its keys and values depend on: the model and how it runs, the adapter's content,
the salt of the request, and all ids and media up to the page's end. So the longest known prefix of a prompt is found
by looking for one page after the other, and a request with a salt finds nothing that was kept without it.

A sequence that begins waits with its pages while they are filled, a few per step, so that other sequences advance
meanwhile. It never depends on them: whatever the store does not have in the end is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from typing import Protocol

import numpy as np

from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.sequence import Sequence
from glm4.model.kv_cache import PAGE_SIZE
from glm4.prompt import Prompt

# Bytes of the cache that one step reads from the store, and that it copies for it: some milliseconds each. A step
# computes fewer than it may copy, so that writing keeps up with a long prompt.
_READ_NBYTES = 8 << 20
_COPY_NBYTES = 32 << 20
# Seconds that the step which completes a prompt waits for its last pages to be written, at most. So whoever has seen an
# answer begin can rely on its prompt, whatever happens to this process then; such a step took longer than that itself.
_PATIENCE = 0.1


class PageStore(Protocol):
    """Where pages of one `KVCache` are kept. Nothing that goes wrong there raises an error: the store has less, then.

    Attributes:
        identity: of everything that keys and values depend on beside prompt, adapter and salt.
        min_tokens: shorter prompts are neither kept nor looked for.
        page_nbytes: of a page in the cache.
        num_written_pages: since the start.
    """

    identity: str
    min_tokens: int
    page_nbytes: int
    num_written_pages: int

    @property
    def nbytes(self) -> int:
        """Of all pages that are kept, now, as far as this process knows."""

    def find(self, keys: AbstractSequence[bytes]) -> int:
        """How many of the keys, from the first on, are there; these count as used now."""

    def read(self, keys: AbstractSequence[bytes], pages: AbstractSequence[int]) -> int:
        """Fill pages of the cache; returns how many, from the first on, have their content."""

    def write(self, keys: AbstractSequence[bytes], first: int, pages: AbstractSequence[int]) -> int:
        """Begin to keep pages of a prompt; their content is copied before this returns.

        Args:
            keys: of the prompt's pages.
            first: number of the first page among them.

        Returns:
            How many were taken; the others may be offered again later.
        """

    def wait(self, seconds: float) -> None:
        """Wait until everything that was taken is kept, but not longer."""

    def close(self) -> None:
        """Finish what `write` began. Idempotent."""


class StoredPrefixes:
    """The engine's side of a `PageStore`.

    Attributes:
        num_read_tokens: of prompts, whose keys and values were read instead of computed.
    """

    def __init__(self, store: PageStore, prefix_cache: PrefixCache) -> None:
        self.store = store
        self._prefix_cache = prefix_cache
        self._most_read = max(1, _READ_NBYTES // store.page_nbytes)
        self._most_copied = max(1, _COPY_NBYTES // store.page_nbytes)
        self.num_read_tokens = 0

    def begin(self, sequence: Sequence) -> None:
        """Look for a sequence that begins after the full pages that it holds; it may have to wait for more of them."""
        if sequence.page_keys is None:
            sequence.page_keys = self._keys(sequence)
        if sequence.page_keys:
            found = sequence.num_stored_pages = self.store.find(sequence.page_keys)
            # At least one id must be computed.
            wanted = min(_num_virtual_pages(sequence) + found, (len(sequence.ids) - 1) // PAGE_SIZE)
            sequence.num_awaited_pages = wanted if wanted > sequence.num_shared_pages else 0

    def read(self, running: Iterable[Sequence]) -> None:
        """A step's part for the sequences that wait for pages, oldest first."""
        most = self._most_read
        for one in running:
            if most > 0 and one.num_awaited_pages:
                before = one.num_shared_pages
                one.attempt(self._read, one, most)
                most -= one.num_shared_pages - before

    def keep(self, sequence: Sequence) -> None:
        """Offer the store some of what it lacks of a prompt, as far as that is computed and shared."""
        keys, first, virtual = sequence.page_keys, sequence.num_stored_pages, _num_virtual_pages(sequence)
        stop = min(sequence.num_shared_pages - virtual, first + self._most_copied, len(keys or ()))
        if keys and first < stop:
            pages = sequence.pages[virtual + first : virtual + stop]
            sequence.num_stored_pages += self.store.write(keys, first, pages)
            if sequence.num_stored_pages == len(keys):
                self.store.wait(_PATIENCE)

    def _read(self, sequence: Sequence, most: int) -> None:
        first, virtual = sequence.num_shared_pages, _num_virtual_pages(sequence)
        keys = (sequence.page_keys or ())[first - virtual :]
        count = min(most, sequence.num_awaited_pages - first, self._prefix_cache.num_available_pages)
        pages = self._prefix_cache.allocate(max(0, count))
        num_read = 0
        try:
            num_read = self.store.read(keys[: len(pages)], pages)
        finally:
            self._prefix_cache.release(pages[num_read:])
        if num_read:
            before = sequence.num_computed
            # A page of an adapter's last virtual tokens has them in the store together with the text behind them.
            self._prefix_cache.release(sequence.pages[first:])
            sequence.pages[first:] = pages[:num_read]
            sequence.num_computed = len(sequence.pages) * PAGE_SIZE
            sequence.num_shared_pages = self._prefix_cache.share(
                sequence.ids, sequence.pages, sequence.num_computed, first, sequence.tree, sequence.spans
            )
            if not sequence.was_preempted:
                sequence.num_cached = sequence.num_computed - sequence.num_virtual
                self.num_read_tokens += sequence.num_computed - before
        if num_read < count:  # the next one is damaged or gone: to be kept again
            sequence.num_stored_pages = sequence.num_shared_pages - virtual
        if num_read < max(1, count) or sequence.num_shared_pages == sequence.num_awaited_pages:
            sequence.num_awaited_pages = 0

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """Keys of a prompt's full pages behind those of virtual tokens; none where the store has no part in it.

        Pages of virtual tokens alone are written from the adapter, which is faster and rounds nothing. An embedding
        needs every row of its prompt. Scored prompts are many and short-lived, and their pages alone would
        not save the scores.
        """
        scored = sequence.request.params.prompt_logprobs is not None
        if scored or sequence.needs_all_rows() or len(sequence.request.prompt) < self.store.min_tokens:
            return []
        adapter = "" if sequence.adapter is None else sequence.adapter.digest
        keys = page_keys(sequence.prompt, self.store.identity, adapter, sequence.request.cache_salt)
        return keys[_num_virtual_pages(sequence) :]


def _num_virtual_pages(sequence: Sequence) -> int:
    """Full pages of virtual tokens, with which its pages begin."""
    return sequence.num_virtual // PAGE_SIZE


def page_keys(prompt: Prompt, *facts: str) -> list[bytes]:
    """A key for each full page of a prompt: SHA-256 of the key before it, its ids, and the media that begin there.

    Media count with their pixels, because the same file may be decoded differently by another version of a library.

    Args:
        facts: what the first page's key depends on as well.
    """
    key = hashlib.sha256(json.dumps(facts).encode()).digest()
    ids = np.asarray(prompt.ids, "<i8")
    pixels = {digest: hashlib.sha256(array.tobytes()).hexdigest() for digest, array in prompt.pixels.items()}
    keys = []
    for start in range(0, len(ids) - PAGE_SIZE + 1, PAGE_SIZE):
        content = ids[start : start + PAGE_SIZE].tobytes()
        for span in prompt.spans:
            if start <= span.start < start + PAGE_SIZE:
                media = [span.start, span.length, span.kind, span.digest, span.offsets, pixels.get(span.digest)]
                content += json.dumps(media).encode()
        key = hashlib.sha256(key + content).digest()
        keys.append(key)
    return keys
