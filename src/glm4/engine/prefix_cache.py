"""`PrefixCache`: pages of previously seen prompts, shared instead of recomputed.

A tree over full pages: a node is one page, keyed under its parent by the page's token ids, so a path from the root is
a prefix. An image's span, with its digest, is part of the key of the page in which it begins, and so of every path
beyond. Pages without holders stay in the tree until memory is needed and are then evicted, least recently used
first. A partly filled page is never shared, so shared pages are never written to.

Log-probabilities of a scored prompt stay beside its pages. A prompt that is to be scored holds only pages with these,
and copies the beginning of the next one where it begins alike: the choices of one question differ in their last tokens.
For that, the last page of a scored prompt stays, too: a leaf with a key shorter than a page, which nobody can hold.

The bookkeeping relies on two invariants:
- A sequence that holds a node also holds its ancestors. So a node never has fewer holders than a child, and a node
  without holders has none below it either: every page in `_idle` can be evicted.
- Pages are released from last to first. So in `_idle`, which is in order of release, a child always precedes its
  parent: the oldest entry is a leaf.

Each adapter has its own tree, because the same tokens have different keys and values under it. A tree is named by
its adapter's number, which is never reused, so pages of an unloaded adapter are never found again and are evicted
eventually; and by the salt of its requests, so that who does not know the salt cannot find out what was cached.

Sharing is exact: a page's keys and values are bit-identical however its tokens were batched and chunked (the kernels'
contract), so it does not matter which of two equal pages a sequence reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, takewhile

from glm4.engine.page_scores import PageScores
from glm4.logprobs import TokenLogprobs
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.prompt import MediaSpan

# Pages looked at for `beginning`, the latest first; and partly filled pages kept behind one page.
_MOST_COMPARED = 16
_MOST_BEGINNINGS = 4

Tree = tuple[int, str]
"""A tree's name: the number of an adapter, or 0, and a salt."""
_Key = tuple[int | MediaSpan | Tree, ...]
_PLAIN: Tree = (0, "")


class _Node:
    """One shared page."""

    __slots__ = ("children", "holders", "key", "page", "parent", "scores")

    def __init__(self, page: int, key: _Key, parent: _Node | None) -> None:
        self.page = page
        self.key = key
        self.parent = parent
        self.children: dict[_Key, _Node] = {}
        self.holders = 0
        self.scores: PageScores | None = None


class PrefixCache:
    """Hands out the pages of a `KVCache`, keeping those of finished prompts for reuse.

    Args:
        enabled: False makes it a plain page allocator: nothing is shared or kept.
    """

    def __init__(self, cache: KVCache, enabled: bool = True) -> None:
        self._cache = cache
        self.enabled = enabled
        self._roots: dict[int | MediaSpan | Tree, _Node] = {}
        self._nodes: dict[int, _Node] = {}
        # Nodes without holders in order of release; a dict because it keeps order and deletes in constant time.
        self._idle: dict[int, _Node] = {}

    @property
    def num_available_pages(self) -> int:
        """Pages that `allocate` can give: free ones and those kept only for reuse."""
        return self._cache.num_free_pages + len(self._idle)

    @property
    def num_used_pages(self) -> int:
        """Pages that running sequences hold."""
        return self._cache.num_pages - self.num_available_pages

    @property
    def score_nbytes(self) -> int:
        """Bytes of the log-probabilities kept; at most a few percent of the keys and values they stand beside."""
        return sum(node.scores.nbytes for node in list(self._nodes.values()) if node.scores is not None)

    def hold(
        self, ids: Sequence[int], tree: Tree = _PLAIN, spans: Sequence[MediaSpan] = (), num_top: int | None = None
    ) -> list[int]:
        """Hold the pages of the longest known prefix of `ids` in a tree, leaving at least one id to compute.

        Args:
            num_top: hold only what `scores` can read, with this many most likely tokens.
        """
        pages: list[int] = []
        node, key_of = self._roots.get(tree), _keys_of(spans)
        for index in range((len(ids) - 1) // PAGE_SIZE if self.enabled else 0):
            node = node.children.get(key_of(ids, index)) if node is not None else None
            if node is None:
                break
            following = ids[(index + 1) * PAGE_SIZE]
            if num_top is not None and (node.scores is None or not node.scores.cover(following, num_top)):
                break
            self._hold(node)
            pages.append(node.page)
        return pages

    def scores(self, ids: Sequence[int], pages: Sequence[int], num_top: int) -> list[TokenLogprobs]:
        """Log-probabilities of the ids from the second to the one after these pages, which `hold` gave."""
        known: list[TokenLogprobs] = []
        for index, page in enumerate(pages):
            scores, start = self._nodes[page].scores, index * PAGE_SIZE + 1
            assert scores is not None  # noqa: S101 (held for its scores)
            known += scores.read(ids[start : start + PAGE_SIZE], num_top)
        return known

    def beginning(
        self, ids: Sequence[int], pages: Sequence[int], num_top: int, tree: Tree = _PLAIN
    ) -> tuple[int, list[TokenLogprobs]]:
        """A page to copy behind these, which `hold` gave; it may be evicted later, but is not overwritten until then.

        Returns:
            The page, and log-probabilities of the ids from the second behind `pages` on. As many rows of the page are
            those of the prompt.
        """
        parent = self._nodes[pages[-1]] if pages else self._roots.get(tree)
        start, count = len(pages) * PAGE_SIZE, 0
        best: _Node | None = None
        for node in islice(reversed(parent.children.values()), _MOST_COMPARED) if parent is not None else ():
            if node.scores is None or node.scores.num_top < num_top:
                continue
            pairs = zip(node.key, ids[start : start + node.scores.count + 1], strict=False)
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) - 1
            if alike > count:
                best, count = node, alike
        if best is None or best.scores is None:
            return -1, []
        return best.page, best.scores.read_inside(ids[start + 1 : start + 1 + count], num_top)

    def keep_beginning(
        self,
        ids: Sequence[int],
        pages: Sequence[int],
        num_shared: int,
        logprobs: Sequence[TokenLogprobs | None],
        tree: Tree = _PLAIN,
    ) -> None:
        """Keep a scored prompt's last page, for `beginning`; to be called before its `release`.

        Args:
            num_shared: full pages that `share` added; the next one is the page.
            logprobs: of the ids whose keys and values are complete.
        """
        start = num_shared * PAGE_SIZE
        inside = [one for one in logprobs[start + 1 : start + PAGE_SIZE] if one is not None]
        key = tuple(ids[start : start + 1 + len(inside)])
        if not self.enabled or not inside or num_shared >= len(pages) or len(key) == PAGE_SIZE:
            return
        parent = self._nodes[pages[num_shared - 1]] if num_shared else self._root(tree)
        known = parent.children.get(key)
        if known is not None and known.scores is not None:
            if known.scores.num_top < len(inside[0].top):
                known.scores = PageScores(inside)
            return
        others = [node for node in parent.children.values() if len(node.key) < PAGE_SIZE]
        if len(others) >= _MOST_BEGINNINGS:
            self._drop(others[0])
        node = _Node(pages[num_shared], key, parent)
        node.holders = 1
        parent.children[key] = self._nodes[node.page] = node
        node.scores = PageScores(inside)

    def copy(self, source: int, page: int) -> None:
        """Copy the keys and values of a page."""
        for array in (*self._cache.keys, *self._cache.values):
            array[page] = array[source]

    def keep_scores(self, pages: Sequence[int], first: int, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """Keep a prompt's log-probabilities beside the pages that `share` added.

        Args:
            pages: the sequence's shared pages.
            first: the first of them whose log-probabilities are new.
            logprobs: of the prompt's ids so far.
        """
        for index in range(first, min(len(pages), len(logprobs) // PAGE_SIZE)):
            node, start = self._nodes[pages[index]], index * PAGE_SIZE + 1
            inside = [one for one in logprobs[start : start + PAGE_SIZE - 1] if one is not None]
            scores = PageScores(inside)
            if node.scores is not None:
                scores = scores.joined(node.scores)
            for one in logprobs[start + PAGE_SIZE - 1 : start + PAGE_SIZE]:
                if one is not None:
                    scores.add_next(one)
            node.scores = scores

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, evicting the least recently used shared ones as needed.

        Raises:
            ValueError: `count` exceeds `num_available_pages`.
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
        tree: Tree = _PLAIN,
        spans: Sequence[MediaSpan] = (),
    ) -> int:
        """Add a sequence's full pages to the tree.

        A page whose content is already there is freed and replaced in `pages` by the shared one.

        Args:
            ids: the sequence's ids.
            pages: its pages; modified in place.
            num_computed: ids whose keys and values are complete.
            first: number of full pages already added.
            tree: what they were computed under.
            spans: which ids stand for media.

        Returns:
            Total number of full pages added so far.
        """
        full = num_computed // PAGE_SIZE
        if not self.enabled or first >= full:
            return first
        root = self._root(tree)
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
        """Release a sequence's pages, from last to first; shared ones are kept until memory is needed."""
        for page in reversed(pages):
            node = self._nodes.get(page)
            if node is None:
                self._cache.free([page])
                continue
            node.holders -= 1
            if node.holders == 0:
                self._idle[page] = node

    def clear(self) -> None:
        """Drop every page without holders."""
        while self._idle:
            self._drop(next(iter(self._idle.values())))

    def _root(self, tree: Tree) -> _Node:
        # Its key holds the tree's name, so that it can be dropped with its last child.
        return self._roots.setdefault(tree, _Node(-1, (tree,), None))

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
    """A function from a sequence's ids and a page's number to the page's key."""
    if not spans:
        return _key
    return lambda ids, index: _key(ids, index) + tuple(s for s in spans if s.start // PAGE_SIZE == index)
