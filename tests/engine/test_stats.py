"""`Engine.stats`: true numbers while requests run, and nothing in use once they are gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from test_engine import CONFIG, engine, prompt, request, run

from adapter_files import random_adapter
from glm4.backends.scripted import ScriptedBackend
from glm4.engine.protocol import EngineStats
from glm4.model.kv_cache import PAGE_SIZE


def test_running_waiting_and_pages_return_to_zero_after_aborts(tmp_path: Path) -> None:
    built = engine(pages=16, max_num_seqs=2)
    for name in ("one", "two"):
        built.adapters.add(name, random_adapter(tmp_path, CONFIG, len(name)))
    assert built.stats() == EngineStats(kv_pages_total=16)
    adapters = ["one", None, "two", "one"]
    for index, adapter in enumerate(adapters):
        built.add_request(replace(request(f"r{index}", prompt(index, 70), max_tokens=30), adapter=adapter))
    built.add_request(replace(request("e", prompt(9, 70)), pooling="mean"))
    stats = built.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_pages_used) == (0, 5, 0)
    assert (stats.running_adapters, stats.waiting_adapters) == ((), ("one", "two"))
    built.step()
    stats = built.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 3)
    assert stats.kv_pages_used == 2 * 3  # 70 tokens are 3 pages
    assert (stats.running_adapters, stats.waiting_adapters) == (("one",), ("two",))
    for name in built.request_ids():
        built.abort(name)
    stats = built.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_pages_used) == (0, 0, 0)
    assert stats.running_adapters == stats.waiting_adapters == ()


def test_pages_kept_for_reuse_are_not_in_use() -> None:
    built = engine(pages=16)
    built.add_request(request("a", prompt(1, 100)))
    run(built)
    assert built.cache.num_free_pages < 16
    assert built.stats().kv_pages_used == 0


def test_prefix_cache_counts_tokens() -> None:
    built = engine()
    for name in ("a", "b"):
        built.add_request(request(name, prompt(1, 3 * PAGE_SIZE + 7), max_tokens=2))
        run(built)
    stats = built.stats()
    assert stats.prefix_cache_queries == 2 * (3 * PAGE_SIZE + 7)
    assert stats.prefix_cache_hits == 3 * PAGE_SIZE
    off = engine(caching=False)
    off.add_request(request("a", prompt(1, 100)))
    run(off)
    assert off.stats().prefix_cache_queries == 0


def test_what_a_preempted_prompt_finds_of_itself_is_no_hit() -> None:
    built = engine(max_num_batched_tokens=2 * PAGE_SIZE)
    built.add_request(request("a", prompt(1, 4 * PAGE_SIZE), max_tokens=1))
    built.step()
    (sequence,) = built.scheduler.running
    built.scheduler._preempt(sequence)
    (output,) = built.step()  # one step is enough, because two of the pages were found again
    assert output.num_cached_tokens == 0
    assert (built.stats().prefix_cache_queries, built.stats().prefix_cache_hits) == (4 * PAGE_SIZE, 0)


def test_guesses_and_preemptions_are_counted() -> None:
    built = engine(guess_cost=0.0)
    built.add_request(request("a", prompt(9, 6) * 12, logit_bias={5: 90.0}, max_tokens=40))
    run(built)
    stats = built.stats()
    assert 0 < stats.num_accepted_tokens <= stats.num_drafted_tokens
    small = engine(pages=6, max_num_seqs=4)
    for index in range(4):
        small.add_request(request(f"p{index}", prompt(index, 30), max_tokens=60))
    run(small)
    assert small.stats().num_preemptions == small.scheduler.num_preemptions > 0


def test_the_scripted_backend_counts_too() -> None:
    backend = ScriptedBackend(lambda ids: [1, 2, 3], max_num_seqs=2)
    backend.load_adapter("a", "anywhere")
    for index in range(3):
        backend.add_request(replace(request(f"r{index}", [1, 2]), adapter="a" if index == 2 else None))
    stats = backend.stats()
    assert (stats.num_running, stats.num_waiting, stats.waiting_adapters) == (2, 1, ("a",))
    while backend.has_unfinished_requests():
        backend.step()
    assert backend.stats() == EngineStats()
