"""Pages of the cache: free, kept, shared or one sequence's own; nothing shared is written; answers never change.

A Hypothesis state machine runs the real engine on a tiny model and a few pages, with random requests, aborts,
preemptions and evictions; some with adapters of both kinds, which come and go; some for embeddings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_engine import CONFIG, MODEL, finish, prompt, request, run

from adapter_files import drawn_prefix, packed_adapter
from glm4.engine.engine import Engine
from glm4.engine.page_store import PageStore
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.kernels import int8_cache
from glm4.logprobs import TokenLogprobs
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.lora import LoraAdapter
from glm4.model.prefix import Adapter, PrefixAdapter

Answer = tuple[float, ...]  # token ids, or an embedding
Scores = tuple[TokenLogprobs | None, ...]
# The prefix is a full page and a part of the next one.
ADAPTERS: dict[str, Adapter] = {
    "one": packed_adapter(CONFIG, 1),
    "two": packed_adapter(CONFIG, 2),
    "prefix": drawn_prefix(CONFIG, 3, PAGE_SIZE + 2),
}


def small_engine(
    pages: int,
    kv: str,
    *,
    caching: bool = True,
    store: Callable[[KVCache], PageStore] | None = None,
    **scheduler: int,
) -> Engine:
    limit = min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    cache = KVCache(CONFIG, pages, kv)
    page_store = None if store is None else store(cache)
    made = Engine(
        MODEL, cache, limit, SchedulerConfig(**scheduler), enable_prefix_caching=caching, page_store=page_store
    )
    for name, adapter in ADAPTERS.items():
        made.adapters.add(name, adapter)
    return made


@cache
def expected(kv: str, pages: int, kind: int, length: int, new: int, greedy: bool, adapter: str | None) -> Answer:
    """The answer of a fresh engine that runs this request alone, shares nothing and guesses nothing."""
    made = small_engine(pages, kv, caching=False, max_speculative_rows=0)
    made.add_request(replace(an_item("x", kind, length, new, greedy), adapter=adapter))
    return tuple(run(made)["x"])


@cache
def expected_embedding(kv: str, kind: int, length: int, adapter: str | None) -> Answer:
    made = small_engine(14, kv, caching=False)
    output = finish(made, replace(an_item("x", kind, length, 1, True), adapter=adapter, pooling="mean"))
    assert output.embedding is not None
    return tuple(output.embedding.tolist())


def scores_of(output: GenerationOutput) -> Scores:
    assert output.prompt_logprobs is not None
    return output.prompt_logprobs


@cache
def expected_scores(kv: str, kind: int, length: int, num_top: int, adapter: str | None) -> Scores:
    made = small_engine(14, kv, caching=False)
    return scores_of(finish(made, replace(a_scored("x", kind, length, num_top), adapter=adapter)))


def a_scored(name: str, kind: int, length: int, num_top: int) -> GenerationRequest:
    item = an_item(name, kind, length, 1, True)
    return replace(item, params=item.params.replace(prompt_logprobs=num_top))


def an_item(name: str, kind: int, length: int, new: int, greedy: bool) -> GenerationRequest:
    """Prompts of one kind begin alike, so that they share pages; kind 2 repeats itself, so that guesses come true."""
    ids = prompt(9, 6) * 20 if kind == 2 else prompt(kind, 120)
    bias = {5: 9.0, 6: 9.0} if kind == 2 else None
    sampling = {"temperature": 0} if greedy else {"temperature": 0.8, "seed": 7}
    return request(name, ids[:length], max_tokens=new, logit_bias=bias, **sampling)


def page_bytes(kv: KVCache, page: int) -> bytes:
    return b"".join(array[page].tobytes() for array in (*kv.keys, *kv.values))


def tokens_of(values: np.ndarray, page: int) -> np.ndarray:
    """A page's values by token, [PAGE_SIZE, KV, D]."""
    if values.dtype != np.int8:
        return values[page].swapaxes(0, 1)
    numbers, scales = (view[page] for view in int8_cache.value_views(values))
    by_token = numbers.transpose(1, 3, 0, 2).reshape(PAGE_SIZE, len(numbers), -1)
    return by_token * scales.T[:, :, None]


def check_pages(made: Engine) -> None:
    """Every page is in exactly one place, and every count of holders is the number of those who hold."""
    shared, free = made.prefix_cache._nodes, list(made.cache._free)
    running = made.scheduler.running
    own = [page for sequence in running for page in sequence.pages[sequence.num_shared_pages :]]
    assert sorted([*free, *shared, *own]) == list(range(made.cache.num_pages))
    holders = Counter(page for sequence in running for page in sequence.pages[: sequence.num_shared_pages])
    assert {page: node.holders for page, node in shared.items() if node.holders} == dict(holders)
    assert set(made.prefix_cache._idle) == {page for page, node in shared.items() if not node.holders}
    for page, node in shared.items():
        assert node.page == page
        assert node.parent is not None
        assert node.parent.children[node.key] is node
        assert len(node.key) == PAGE_SIZE or not (node.holders or node.children or node.scores is None)
        assert all(node.holders >= child.holders for child in node.children.values())
    assert all(root.children for root in made.prefix_cache._roots.values())
    for sequence in running:
        assert len(sequence.pages) >= pages_for(sequence.num_computed)
        assert sequence.num_shared_pages <= sequence.num_computed // PAGE_SIZE
        held = sequence.pages[: sequence.num_shared_pages]
        assert [shared[page].key for page in held] == [
            tuple(sequence.ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]) for index in range(len(held))
        ]
    assert all(not sequence.pages for sequence in made.scheduler.waiting)
    assert len(running) <= made.scheduler.config.max_num_seqs


class PageMachine(RuleBasedStateMachine):
    """Random requests, steps, aborts, preemptions and evictions."""

    store: Callable[[KVCache], PageStore] | None = None

    @initialize(
        pages=st.integers(4, 14),
        seqs=st.integers(1, 6),
        chunk=st.integers(4, 64),
        kv=st.sampled_from(["fp32", "fp16", "int8"]),
        rows=st.sampled_from([0, 8]),
    )
    def start(self, pages: int, seqs: int, chunk: int, kv: str, rows: int) -> None:
        self.pages, self.kv, self.count = pages, kv, 0
        self.engine = small_engine(
            pages,
            kv,
            store=self.store,
            max_num_seqs=seqs,
            max_num_batched_tokens=chunk,
            max_prefill_beside_decode=chunk,
            max_speculative_rows=rows,
        )
        self.wanted: dict[str, Answer] = {}
        self.answers: dict[str, list[float]] = {}
        self.scores: dict[str, Scores] = {}

    @rule(
        kind=st.integers(0, 2),
        length=st.integers(1, 90),
        new=st.integers(1, 30),
        greedy=st.booleans(),
        adapter=st.sampled_from([None, None, *ADAPTERS]),
    )
    def add(self, kind: int, length: int, new: int, greedy: bool, adapter: str | None) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.engine.add_request(replace(an_item(name, kind, length, new, greedy), adapter=adapter))
        self.wanted[name] = expected(self.kv, self.pages, kind, length, new, greedy, adapter)
        self.answers[name] = []

    @rule(kind=st.integers(0, 2), length=st.integers(1, 90), adapter=st.sampled_from([None, *ADAPTERS]))
    def embed(self, kind: int, length: int, adapter: str | None) -> None:
        self.count += 1
        name = f"e{self.count}"
        self.engine.add_request(replace(an_item(name, kind, length, 1, True), adapter=adapter, pooling="mean"))
        self.wanted[name] = expected_embedding(self.kv, kind, length, adapter)
        self.answers[name] = []

    @rule(
        kind=st.integers(0, 2),
        length=st.integers(1, 90),
        num_top=st.integers(0, 2),
        adapter=st.sampled_from([None, None, *ADAPTERS]),
    )
    def score(self, kind: int, length: int, num_top: int, adapter: str | None) -> None:
        self.count += 1
        name = f"s{self.count}"
        self.engine.add_request(replace(a_scored(name, kind, length, num_top), adapter=adapter))
        self.wanted[name] = expected(self.kv, self.pages, kind, length, 1, True, adapter)
        self.answers[name] = []
        self.scores[name] = expected_scores(self.kv, kind, length, num_top, adapter)

    @rule(name=st.sampled_from(list(ADAPTERS)))
    def reload(self, name: str) -> None:
        """Its pages are found no more; requests that use it go on with it."""
        old = ADAPTERS[name]
        self.engine.adapters.remove(name)
        new = PrefixAdapter(old.keys, old.values) if isinstance(old, PrefixAdapter) else LoraAdapter(old.factors)
        self.engine.adapters.add(name, new)

    @rule(which=st.integers(0, 9))
    def abort(self, which: int) -> None:
        for name in sorted(self.wanted)[which : which + 1]:
            self.engine.abort(name)
            del self.wanted[name]

    @rule()
    def preempt(self) -> None:
        """What the scheduler does when pages run out, at a moment of our own choice."""
        for sequence in self.engine.scheduler.running[-1:]:
            self.engine.scheduler._preempt(sequence)

    @rule()
    def evict(self) -> None:
        self.engine.prefix_cache.clear()

    @rule(steps=st.integers(1, 20))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        before = {page: (node, page_bytes(self.engine.cache, page)) for page, node in self._shared().items()}
        outputs = self.engine.step()
        for page, node in self._shared().items():
            if page in before and before[page][0] is node:
                assert page_bytes(self.engine.cache, page) == before[page][1], "a shared page was written to"
        check_pages(self.engine)
        for output in outputs:
            found = output.token_ids if output.embedding is None else output.embedding.tolist()
            self.answers[output.request_id] += found
            if output.prompt_logprobs is not None:
                assert output.prompt_logprobs == self.scores.pop(output.request_id), "to the last bit"
            if output.finish_reason is not None:
                assert tuple(self.answers[output.request_id]) == self.wanted.pop(output.request_id)

    def _shared(self) -> dict[int, object]:
        return dict(self.engine.prefix_cache._nodes)

    @invariant()
    def pages_add_up(self) -> None:
        if hasattr(self, "engine"):
            check_pages(self.engine)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_unfinished_requests():
            self._step()
        assert not self.wanted
        assert self.engine.prefix_cache.num_available_pages == self.pages
        self.engine.prefix_cache.clear()
        assert self.engine.cache.num_free_pages == self.pages


TestPageMachine = PageMachine.TestCase
TestPageMachine.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("kv", ["fp32", "fp16", "int8"])
def test_two_who_agree_within_a_page_write_into_pages_of_their_own(kv: str) -> None:
    """Why no copy-on-write is needed: a partly filled page is never shared, even when its tokens are the same."""
    made = small_engine(12, kv, max_speculative_rows=0)
    ids = prompt(0, PAGE_SIZE + 8)  # a full page, and a quarter of the next
    finish(made, request("first", ids, max_tokens=1))
    for name, bias in (("a", 5), ("b", 6)):
        made.add_request(request(name, ids, max_tokens=12, logit_bias={bias: 100.0}))
    made.step()
    a, b = made.scheduler.running
    assert a.pages[0] == b.pages[0]
    assert (a.num_shared_pages, b.num_shared_pages) == (1, 1)
    assert a.ids[: len(ids)] == b.ids[: len(ids)]
    assert a.pages[1] != b.pages[1]
    for _ in range(10):
        shared = page_bytes(made.cache, a.pages[0])
        # Equal keys and values, in two places, up to where their answers part.
        for array in made.cache.values:
            np.testing.assert_array_equal(tokens_of(array, a.pages[1])[:8], tokens_of(array, b.pages[1])[:8])
        made.step()
        assert page_bytes(made.cache, a.pages[0]) == shared
        assert set(a.ids[len(ids) :]) == {5}
        assert set(b.ids[len(ids) :]) == {6}
    last = made.cache.values[-1]
    assert not np.array_equal(tokens_of(last, a.pages[1])[8], tokens_of(last, b.pages[1])[8])


def test_a_partly_filled_page_is_not_found_by_its_own_continuation() -> None:
    """Only full pages are entered, so a conversation that goes on computes its last page again."""
    made = small_engine(12, "fp16")
    ids = prompt(0, 70)
    answer = finish(made, request("a", ids, max_tokens=1)).token_ids
    output = finish(made, request("b", [*ids, *answer, 3], max_tokens=1))
    assert output.num_cached_tokens == 70 // PAGE_SIZE * PAGE_SIZE
