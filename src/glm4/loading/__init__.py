"""From files on disk to a model in memory: streaming, packing, and the cache of packed weights."""
