"""`PrefixCache`: pages of prompts seen before, shared instead of computed again.

A tree over full pages: a node is one page, keyed below its parent by the page's token ids, so a path from the root is
a prefix. A picture's span, with its digest, belongs to the key of the page in which it begins, and so to every path
beyond. Pages that nobody holds stay in the tree until memory is needed and are then taken back, least recently used
first. A partly filled page is never shared, so nothing shared is ever written to.

Two invariants carry the bookkeeping:
- Who holds a node holds its ancestors. So no node has fewer holders than a child, and a node without holders has none
  below it either: every page in `_idle` can be taken back.
- Pages are released from the last to the first. So in `_idle`, which is in order of release, a child always stands
  before its parent: the oldest entry is a leaf.

Each LoRA adapter has a tree of its own, because the same tokens have other keys and values under it. A tree's number is
its adapter's, which is never used again, so pages of an unloaded adapter are found by nobody and taken back in time.

Sharing is exact: a page's keys and values are bit-identical however its tokens were batched and chunked (the kernels'
contract), so which of two equal pages a sequence reads can't matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.prompt import MediaSpan

_Key = tuple[int | MediaSpan, ...]


class _Node:
    """One shared page."""

    __slots__ = ("children", "holders", "key", "page", "parent")

    def __init__(self, page: int, key: _Key, parent: _Node | None) -> None:
        self.page = page
        self.key = key
        self.parent = parent
        self.children: dict[_Key, _Node] = {}
        self.holders = 0


class PrefixCache:
    """Hands out the pages of a `KVCache`, keeping those of finished prompts for reuse.

    Args:
        enabled: False makes it a plain page allocator: nothing is shared, nothing kept.
    """

    def __init__(self, cache: KVCache, enabled: bool = True) -> None:
        self._cache = cache
        self.enabled = enabled
        self._roots: dict[int | MediaSpan, _Node] = {}
        self._nodes: dict[int, _Node] = {}
        # Nodes without holders in order of release; a dict because it keeps order and forgets in constant time.
        self._idle: dict[int, _Node] = {}

    @property
    def num_available_pages(self) -> int:
        """Pages that `allocate` can give: free ones and those kept only for reuse."""
        return self._cache.num_free_pages + len(self._idle)

    @property
    def num_used_pages(self) -> int:
        """Pages that running sequences hold."""
        return self._cache.num_pages - self.num_available_pages

    def hold(self, ids: Sequence[int], tree: int = 0, spans: Sequence[MediaSpan] = ()) -> list[int]:
        """Hold the pages of the longest known prefix of `ids` in a tree, leaving at least one id to compute."""
        pages: list[int] = []
        node, key_of = self._roots.get(tree), _keys_of(spans)
        for index in range((len(ids) - 1) // PAGE_SIZE if self.enabled else 0):
            node = node.children.get(key_of(ids, index)) if node is not None else None
            if node is None:
                break
            self._hold(node)
            pages.append(node.page)
        return pages

    def allocate(self, count: int) -> list[int]:
        """Take `count` fresh pages, dropping the least recently used shared ones as needed.

        Raises:
            ValueError: more than `num_available_pages` were asked for.
        """
        while count > self._cache.num_free_pages and self._idle:
            self._drop(next(iter(self._idle.values())))
        return self._cache.allocate(count)

    def share(
        self,
        ids: Sequence[int],
        pages: list[int],
        num_computed: int,
        first: int,
        tree: int = 0,
        spans: Sequence[MediaSpan] = (),
    ) -> int:
        """Enter a sequence's full pages into the tree.

        A page whose content is there already is given back and replaced in `pages` by the shared one.

        Args:
            ids: the sequence's ids.
            pages: its pages; changed in place.
            num_computed: ids whose keys and values are complete.
            first: full pages entered already.
            tree: 0, or the number of the adapter they were computed under.
            spans: which ids stand for media.

        Returns:
            Full pages entered now, in all.
        """
        full = num_computed // PAGE_SIZE
        if not self.enabled or first >= full:
            return first
        # A root's key holds its tree's number, so that it can be dropped with its last child.
        root = self._roots.setdefault(tree, _Node(-1, (tree,), None))
        parent, key_of = root if first == 0 else self._nodes[pages[first - 1]], _keys_of(spans)
        for index in range(first, full):
            key = key_of(ids, index)
            node = parent.children.get(key)
            if node is None:
                node = _Node(pages[index], key, parent)
                node.holders = 1
                parent.children[key] = self._nodes[node.page] = node
            else:
                self._cache.free([pages[index]])
                pages[index] = node.page
                self._hold(node)
            parent = node
        return full

    def release(self, pages: Sequence[int]) -> None:
        """Give up a sequence's pages, from the last to the first; shared ones are kept until memory is needed."""
        for page in reversed(pages):
            node = self._nodes.get(page)
            if node is None:
                self._cache.free([page])
                continue
            node.holders -= 1
            if node.holders == 0:
                self._idle[page] = node

    def clear(self) -> None:
        """Drop every page that nobody holds."""
        while self._idle:
            self._drop(next(iter(self._idle.values())))

    def _hold(self, node: _Node) -> None:
        node.holders += 1
        self._idle.pop(node.page, None)

    def _drop(self, node: _Node) -> None:
        parent = node.parent
        if node.children or node.holders or parent is None:
            raise RuntimeError("a shared page in use was about to be dropped")
        del parent.children[node.key], self._nodes[node.page], self._idle[node.page]
        if parent.parent is None and not parent.children:
            del self._roots[parent.key[0]]
        self._cache.free([node.page])


def _key(ids: Sequence[int], index: int) -> _Key:
    return tuple(ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])


def _keys_of(spans: Sequence[MediaSpan]) -> Callable[[Sequence[int], int], _Key]:
    """What gives the keys of a sequence's pages, from its ids and a page's number."""
    if not spans:
        return _key
    return lambda ids, index: _key(ids, index) + tuple(s for s in spans if s.start // PAGE_SIZE == index)
