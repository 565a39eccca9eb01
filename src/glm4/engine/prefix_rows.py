"""`PrefixRows`: the rows of adapters' prefixes in the pages of sequences.

A prefix is not computed, so its rows are written when a sequence begins. The full pages among them belong to the prefix
cache from then on, as those of a prompt do: other sequences of the adapter share them, and when they have been evicted
they are written again. The rows on a page that text shares with them are written for each sequence.
"""

from __future__ import annotations

import numpy as np

from glm4.engine.prefix_cache import PrefixCache
from glm4.engine.sequence import Sequence
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for, slots_of
from glm4.model.prefix import PrefixAdapter
from glm4.model.transformer import Transformer


class PrefixRows:
    """Writes the prefix of a sequence's adapter into its pages."""

    def __init__(self, model: Transformer, cache: KVCache, prefix_cache: PrefixCache) -> None:
        self._model = model
        self._cache = cache
        self._prefix_cache = prefix_cache

    def fill(self, sequence: Sequence) -> None:
        """Write all virtual tokens behind the full pages that a sequence holds, on pages that must be available."""
        if not isinstance(sequence.adapter, PrefixAdapter):
            raise TypeError("only an adapter with a prefix has virtual tokens")
        held, count = len(sequence.pages), sequence.num_virtual
        sequence.pages += self._prefix_cache.allocate(pages_for(count) - held)
        slots = slots_of(sequence.pages, np.arange(held * PAGE_SIZE, count))
        self._model.store_prefix(sequence.adapter, held * PAGE_SIZE, slots, self._cache)
        sequence.num_computed = count
        sequence.num_shared_pages = self._prefix_cache.share(
            sequence.ids, sequence.pages, count, held, sequence.tree, sequence.spans
        )
