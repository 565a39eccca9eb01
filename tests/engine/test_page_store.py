"""Pages from a KV store: every answer is the one without it, to the last bit, whoever asks, and whatever breaks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import seeing
from test_engine import CONFIG, MODEL, OPTIONS, alone, prompt, request, run
from test_pages import check_pages

from adapter_files import packed_adapter
from glm4.engine import page_store
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.loading.kv_store import KVStore
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.lora import LoraAdapter
from kv_stores import kv_store, page_files, settle

DOCUMENT = prompt(0, 10 * PAGE_SIZE)


@pytest.fixture(params=["fp32", "fp16", "int8"])
def kv_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache that engines of this test have."""
    monkeypatch.setitem(OPTIONS, "kv_dtype", request.param)
    return str(request.param)


def engine(folder: Path, pages: int = 64, *, facts: str = "model", min_tokens: int = 0, **scheduler: int) -> Engine:
    """A new process, as far as the store is concerned."""
    cache = KVCache(CONFIG, pages, OPTIONS["kv_dtype"])
    store = kv_store(cache, folder, facts, min_tokens=min_tokens)
    limit = min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    return Engine(MODEL, cache, limit, SchedulerConfig(**scheduler), page_store=store)


def store_of(made: Engine) -> KVStore:
    assert made._stored is not None
    assert isinstance(made._stored.store, KVStore)
    return made._stored.store


def finish(made: Engine, item: GenerationRequest) -> tuple[list[int], int]:
    """An answer, and how many tokens of its prompt were cached; everything is on disk then."""
    made.add_request(item)
    tokens, cached = list[int](), 0
    while made.has_unfinished_requests():
        for output in made.step():
            assert output.error is None, output.error
            tokens += output.token_ids
            cached = output.num_cached_tokens
    settle(store_of(made))
    check_pages(made)
    assert made.prefix_cache.num_used_pages == 0
    return tokens, cached


def full(tokens: int) -> int:
    """Tokens of a prompt that can come from a cache."""
    return (tokens - 1) // PAGE_SIZE * PAGE_SIZE


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize("step_nbytes", [1, 1 << 30], ids=["a page per step", "at once"])
@pytest.mark.parametrize("chunk", [17, 512])
def test_another_process_answers_the_same_and_computes_only_what_is_new(
    chunk: int, step_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_store, "_READ_NBYTES", step_nbytes)
    monkeypatch.setattr(page_store, "_COPY_NBYTES", step_nbytes)
    # With a page per step the answer is long enough to offer all pages that were computed at once.
    first = request("first", [*DOCUMENT, 5, 6, 7], max_tokens=14)
    assert finish(engine(tmp_path, max_num_batched_tokens=chunk), first) == (alone(first), 0)
    longer = [*DOCUMENT, *prompt(3, 90)]
    for ids, found in (
        (first.prompt_ids, 320),
        ([*DOCUMENT, 9], 320),  # another suffix
        (DOCUMENT, 288),  # one id must be computed
        (DOCUMENT[:100], 96),
        (longer, 320),
        ([*DOCUMENT[:200], 4, *DOCUMENT[201:]], 192),  # parts in the seventh page
        (prompt(8, 200), 0),
    ):
        made, item = engine(tmp_path, max_num_batched_tokens=chunk), request("x", list(ids))
        assert finish(made, item) == (alone(item), found)
        assert made.stats().kv_store_hits == found
    made, item = engine(tmp_path), request("again", longer)
    assert finish(made, item) == (alone(item), full(len(longer))), "what was new has been kept as well"


@pytest.mark.usefixtures("kv_dtype")
def test_pages_in_memory_come_before_those_on_disk(tmp_path: Path) -> None:
    finish(engine(tmp_path), request("first", DOCUMENT))
    made = engine(tmp_path)
    short, long = request("short", DOCUMENT[:100]), request("long", DOCUMENT)
    assert finish(made, short) == (alone(short), 96)
    assert finish(made, long) == (alone(long), 288)
    assert made.stats().kv_store_hits == 288, "96 of them once"
    assert finish(made, long)[1] == 288
    assert made.stats().kv_store_hits == 288


def test_what_only_memory_has_is_kept_later(tmp_path: Path) -> None:
    made = engine(tmp_path, min_tokens=200)
    finish(made, request("short", DOCUMENT[:150]))
    assert page_files(tmp_path) == []
    finish(made, request("long", DOCUMENT))
    assert len(page_files(tmp_path)) == 10
    assert made.stats().kv_store_pages_written == 10
    assert made.stats().kv_store_nbytes == sum(file.stat().st_size for file in page_files(tmp_path))
    short = request("short", DOCUMENT[:150])
    assert finish(engine(tmp_path, min_tokens=200), short) == (alone(short), 0), "not looked for, either"


def test_a_prompt_is_on_disk_when_its_answer_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_store, "_PATIENCE", 60.0)
    made = engine(tmp_path, max_num_batched_tokens=100)
    made.add_request(request("x", DOCUMENT))
    while not made.step():
        assert made.stats().num_running == 1
    assert len(page_files(tmp_path)) == 10


def test_many_at_once_and_too_few_pages_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_store, "_READ_NBYTES", 1)
    items = [request(f"r{i}", [*DOCUMENT[: 40 * i], *prompt(i, 9)], max_tokens=40) for i in range(1, 7)]
    preemptions = 0
    for _ in range(3):
        made = engine(tmp_path, pages=12, max_num_seqs=6, max_speculative_rows=0)
        for item in items:
            made.add_request(item)
        answers = run(made)
        settle(store_of(made))
        assert answers == {item.request_id: alone(item) for item in items}
        preemptions += made.scheduler.num_preemptions
        assert made.prefix_cache.num_available_pages == 12
    assert preemptions > 0
    assert made.stats().kv_store_hits > 0


def test_a_sequence_that_is_preempted_while_it_waits_for_pages_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(engine(tmp_path), request("first", DOCUMENT))
    monkeypatch.setattr(page_store, "_READ_NBYTES", 1)
    made, item = engine(tmp_path), request("x", DOCUMENT)
    made.add_request(item)
    for _ in range(3):
        assert made.step() == []
    (sequence,) = made.scheduler.running
    assert (len(sequence.pages), sequence.num_awaited_pages, sequence.num_computed) == (3, 9, 3 * PAGE_SIZE)
    made.scheduler._preempt(sequence)
    check_pages(made)
    assert run(made)["x"] == alone(item)


def test_others_advance_while_one_waits_for_pages_and_it_can_be_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(engine(tmp_path), request("first", DOCUMENT))
    monkeypatch.setattr(page_store, "_READ_NBYTES", 1)
    made = engine(tmp_path, max_speculative_rows=0)
    made.add_request(request("stream", prompt(5, 4), max_tokens=30))
    made.step()
    made.add_request(request("x", DOCUMENT))
    made.add_request(request("y", DOCUMENT))
    for count in range(1, 5):
        assert [output.request_id for output in made.step()] == ["stream"]
        waiting = made.scheduler.running[1:]
        assert [len(sequence.pages) for sequence in waiting] == [count, 0], "the oldest first"
        check_pages(made)
    for name in ("x", "y"):
        made.abort(name)
    check_pages(made)
    assert made.prefix_cache.num_used_pages == 1


@pytest.mark.parametrize("salts", [("", "a"), ("a", ""), ("a", "b")])
def test_who_does_not_know_the_salt_finds_nothing(salts: tuple[str, str], tmp_path: Path) -> None:
    own, other = (replace(request("x", DOCUMENT), cache_salt=salt) for salt in salts)
    finish(engine(tmp_path), own)
    assert finish(engine(tmp_path), other) == (alone(other), 0)
    assert finish(engine(tmp_path), own) == (alone(own), 288)


def test_pages_belong_to_the_content_of_an_adapter(tmp_path: Path) -> None:
    adapters = {name: packed_adapter(CONFIG, seed) for name, seed in (("one", 1), ("two", 2))}

    def ask(name: str | None, adapter: LoraAdapter | None) -> tuple[list[int], int]:
        made = engine(tmp_path)
        if name is not None and adapter is not None:
            made.adapters.add(name, adapter)
        return finish(made, replace(request("x", DOCUMENT), adapter=name))

    plain = ask(None, None)
    first = ask("one", adapters["one"])
    assert first[1] == 0
    assert ask("renamed", LoraAdapter(adapters["one"].factors)) == (first[0], 288)
    second = ask("one", adapters["two"])
    assert second[1] == 0
    assert len({tuple(answer) for answer, _ in (plain, first, second)}) == 3
    assert ask(None, None) == (plain[0], 288)


def test_pictures_are_part_of_a_prompt(tmp_path: Path) -> None:
    def ask(item: GenerationRequest) -> tuple[seeing.Answer, int]:
        made = seeing.engine()
        made = Engine(
            seeing.MODELS["fp32"],
            made.cache,
            made.max_model_len,
            made.scheduler.config,
            page_store=kv_store(made.cache, tmp_path),
        )
        answer = seeing.run(made, item)[item.request_id]
        settle(store_of(made))
        return answer, made.stats().kv_store_hits

    words = seeing.words(2, 40)
    item = seeing.ask("x", seeing.prompt(words, "a", words))
    assert ask(item) == (seeing.alone(item), 0)
    assert ask(item) == (seeing.alone(item), full(len(item.prompt_ids)))
    other = seeing.ask("x", seeing.prompt(words, "b", words))
    assert ask(other) == (seeing.alone(other), PAGE_SIZE), "only the page before the picture's"
    changed = replace(item.prompt, pixels={"a": seeing.PIXELS["c"]})  # another decoder
    assert ask(replace(item, prompt=changed)) == (seeing.alone(replace(item, prompt=changed)), PAGE_SIZE)


def test_embeddings_and_scored_prompts_take_no_part(tmp_path: Path) -> None:
    for options in ({"pooling": "mean"}, {"params": request("x", DOCUMENT).params.replace(prompt_logprobs=1)}):
        item = replace(request("x", DOCUMENT), **options)
        assert finish(engine(tmp_path), item)[1] == 0
        assert page_files(tmp_path) == []
    finish(engine(tmp_path), request("x", DOCUMENT))
    for options in ({"pooling": "mean"}, {"params": request("x", DOCUMENT).params.replace(prompt_logprobs=1)}):
        made = engine(tmp_path)
        assert finish(made, replace(request("x", DOCUMENT), **options))[1] == 0
        assert made.stats().kv_store_hits == 0


def test_another_model_cache_or_rounding_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = request("x", DOCUMENT)
    finish(engine(tmp_path), item)
    assert finish(engine(tmp_path, facts="another"), item) == (alone(item), 0)
    monkeypatch.setitem(OPTIONS, "kv_dtype", "int8")
    assert finish(engine(tmp_path), item) == (alone(item), 0)
    monkeypatch.setitem(OPTIONS, "kv_dtype", "fp16")
    cache = KVCache(CONFIG, 16, "fp16")
    assert finish(engine(tmp_path), item)[1] == 0
    names = {kv_store(cache, tmp_path, rounds=rounds).identity for rounds in (False, True)}
    assert len(names) == 2
    eight = KVCache(CONFIG, 16, "int8")
    assert len({kv_store(eight, tmp_path, rounds=rounds).identity for rounds in (False, True)}) == 1


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap(file: Path) -> None:
    """The whole and undamaged page of another prompt, or of another place in this one."""
    other = next(one for one in page_files(file.parent.parent) if one != file)
    file.write_bytes(other.read_bytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: os.truncate(file, 0),
    "only a mark": lambda file: os.truncate(file, 8),
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 1),
    "too long": lambda file: os.truncate(file, file.stat().st_size + 1),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a bit": flip,
    "another page": swap,
    "foreign": lambda file: file.write_text("hello"),
}


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("which", [0, 4])
def test_a_damaged_page_is_computed_again(
    kind: str, which: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = request("x", DOCUMENT)
    finish(engine(tmp_path), item)
    file = page_files(tmp_path)[which]
    content = file.read_bytes()
    DAMAGE[kind](file)
    with caplog.at_level(logging.WARNING, "glm4.kv_store"):
        assert finish(engine(tmp_path), item) == (alone(item), which * PAGE_SIZE)
    assert [record.name for record in caplog.records] == ["glm4.kv_store"]
    assert file.name in caplog.text
    assert file.read_bytes() == content, "it was kept again"
    assert finish(engine(tmp_path), item) == (alone(item), 288)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "gone"])
def test_what_is_not_a_file_of_ours_is_no_page(kind: str, tmp_path: Path) -> None:
    item = request("x", DOCUMENT)
    finish(engine(tmp_path), item)
    file = page_files(tmp_path)[3]
    moved = file.rename(tmp_path / "moved")
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(file)
    assert finish(engine(tmp_path), item) == (alone(item), 3 * PAGE_SIZE)


class _Failing:
    """A store that fails where it must not."""

    identity, min_tokens, page_nbytes, num_written_pages, nbytes = "x", 0, 1 << 20, 0, 0

    def find(self, keys: object) -> int:
        return 4

    def read(self, keys: object, pages: object) -> int:
        raise MemoryError

    def write(self, keys: object, first: int, pages: object) -> int:
        return 0

    def wait(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_error_of_the_store_ends_only_the_request_that_met_it() -> None:
    cache = KVCache(CONFIG, 16, "fp32")
    made = Engine(MODEL, cache, 512, page_store=_Failing())
    made.add_request(request("stream", prompt(1, 4), max_tokens=3))
    made.step()
    made.add_request(request("x", DOCUMENT))
    outputs = list[GenerationOutput]()
    while made.has_unfinished_requests():
        outputs += made.step()
        check_pages(made)
    assert {output.request_id: output.finish_reason for output in outputs} == {"stream": "length", "x": "error"}
    made.prefix_cache.clear()
    assert cache.num_free_pages == 16


def test_pages_that_find_no_room_in_the_queue_are_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm4.loading.kv_store._QUEUE_NBYTES", 1)
    made = engine(tmp_path)
    made.add_request(request("x", DOCUMENT, max_tokens=100))
    while made.has_unfinished_requests():
        made.step()
        settle(store_of(made))
    assert len(page_files(tmp_path)) == 10


def test_a_rounded_page_gives_almost_the_same_logits(tmp_path: Path) -> None:
    cache = KVCache(CONFIG, 32, "fp16")
    store = kv_store(cache, tmp_path, rounds=True)
    made = Engine(MODEL, cache, 512, page_store=store)
    item = request("x", DOCUMENT, logprobs=5, max_tokens=1)

    def logprobs(made: Engine) -> dict[int, float]:
        made.add_request(item)
        (output,) = [output for _ in range(20) for output in made.step()]
        return dict(output.logprobs[0].top)

    exact = logprobs(made)
    settle(store)
    again = KVCache(CONFIG, 32, "fp16")
    made = Engine(MODEL, again, 512, page_store=kv_store(again, tmp_path, rounds=True))
    rounded = logprobs(made)
    assert made.stats().kv_store_hits == 288
    common = exact.keys() & rounded.keys()
    assert len(common) >= 4
    np.testing.assert_allclose([rounded[t] for t in common], [exact[t] for t in common], atol=0.02)
    assert sum(file.stat().st_size for file in page_files(tmp_path)) < 0.75 * 10 * store.page_nbytes
