"""Prefix adapters in the engine: sequences with and without share batches; virtual tokens are never seen outside."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeing
from numpy.typing import NDArray
from test_engine import CONFIG, MODEL, OPTIONS, engine, finish, kv_dtype, mixed_requests, prompt, request
from test_pages import check_pages

from adapter_files import random_adapter
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.errors import PromptTooLongError
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for, slots_of
from glm4.model.prefix import Adapter, PrefixAdapter
from glm4.model.transformer import Transformer
from kv_stores import kv_store, page_files, settle
from prefix_files import random_prefix

__all__ = ["kv_dtype"]  # a fixture

Answer = list[tuple[int, float]]
# A part of a page, a whole one, more than two.
LENGTHS = {"short": 5, "page": PAGE_SIZE, "long": 70}


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PrefixAdapter]:
    folder = tmp_path_factory.mktemp("prefixes")
    return {name: random_prefix(folder, CONFIG, count, seed) for seed, (name, count) in enumerate(LENGTHS.items())}


@pytest.fixture(scope="module")
def adapters(prefixes: dict[str, PrefixAdapter], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """Prefixes beside LoRA."""
    return {**prefixes, "lora": random_adapter(tmp_path_factory.mktemp("lora"), CONFIG, 1)}


def made(adapters: dict[str, Any], pages: int = 64, **options: Any) -> Engine:
    built = engine(pages, **options)
    for name, adapter in adapters.items():
        built.adapters.add(name, adapter)
    return built


def run(built: Engine, *items: GenerationRequest) -> dict[str, Answer]:
    """Request id → its tokens with their log-probabilities."""
    for item in items:
        built.add_request(item)
    answers: dict[str, Answer] = {}
    while built.has_unfinished_requests():
        for output in built.step():
            assert output.finish_reason in (None, "stop", "length"), output
            scored = zip(output.token_ids, (entry.logprob for entry in output.logprobs), strict=True)
            answers.setdefault(output.request_id, []).extend(scored)
        check_pages(built)
    return answers


def alone(adapters: dict[str, Any], item: GenerationRequest) -> Answer:
    return run(made(adapters, caching=False, max_speculative_rows=0), item)[item.request_id]


def asked(ids: list[int], adapter: str | None, **options: object) -> GenerationRequest:
    return replace(request(f"{adapter}-{len(ids)}", ids, **{"logprobs": 0, **options}), adapter=adapter)


def hidden_rows(
    model: Transformer, ids: list[int], prefix: PrefixAdapter, kv_dtype: str = "fp32", **options: Any
) -> NDArray[np.float32]:
    """Of one forward pass over all ids, behind a prefix that was written by hand."""
    count = prefix.num_virtual_tokens
    pages = list(range(pages_for(count + len(ids))))
    cache = KVCache(model.config, len(pages), kv_dtype)
    model.store_prefix(prefix, 0, slots_of(pages, np.arange(count)), cache)
    positions = options.pop("positions", np.arange(count, count + len(ids), dtype=np.int32))
    batch = ForwardBatch.build([pages], [count], [len(ids)], positions=[positions])
    return model.forward(np.array(ids, np.int32), batch, cache, **options)


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize(
    ("pages", "scheduler"),
    [
        (96, {"max_num_seqs": 16}),
        (64, {"max_num_batched_tokens": 17, "max_prefill_beside_decode": 5}),
        (10, {"max_num_seqs": 16}),
    ],
    ids=["plenty", "small chunks", "short of pages"],
)
def test_mixed_batches_change_no_bit(adapters: dict[str, Adapter], pages: int, scheduler: dict[str, Any]) -> None:
    names = [None, *adapters]
    items = [
        replace(item, request_id=f"{item.request_id}-{turn}", adapter=names[(index + turn) % len(names)],
                params=item.params.replace(logprobs=0, max_tokens=40, repetition_penalty=1.1, presence_penalty=0.2))
        for turn in (0, 2) for index, item in enumerate(mixed_requests())
    ]  # fmt: skip
    built = made(adapters, pages, **scheduler)
    answers = run(built, *items)
    for item in items:
        assert answers[item.request_id] == alone(adapters, item), item.request_id
    assert built.prefix_cache.num_available_pages == pages
    assert built.scheduler.num_preemptions > 0 or pages > 10
    built.prefix_cache.clear()
    assert built.cache.num_free_pages == pages


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize("name", LENGTHS)
def test_an_answer_is_what_forward_passes_behind_the_prefix_give(prefixes: dict[str, PrefixAdapter], name: str) -> None:
    ids = prompt(3, 40)
    answer = run(made(prefixes), asked(ids, name, max_tokens=4))[f"{name}-40"]
    for token, logprob in answer:
        row = MODEL.logits(hidden_rows(MODEL, ids, prefixes[name], OPTIONS["kv_dtype"])[-1:])
        scores = MODEL.kernels.log_softmax(row)[0]
        assert (token, logprob) == (int(scores.argmax()), float(scores[token]))
        ids = [*ids, token]
    assert answer != alone(prefixes, asked(prompt(3, 40), None, max_tokens=4))


def test_sequences_share_the_full_pages_of_a_prefix(prefixes: dict[str, PrefixAdapter]) -> None:
    built = made(prefixes)
    built.add_request(asked(prompt(1, 40), "long"))
    built.step()
    built.add_request(asked(prompt(2, 50), "long"))
    built.add_request(asked(prompt(2, 51), "short"))
    built.add_request(replace(asked(prompt(2, 52), "long"), cache_salt="another"))
    built.step()
    check_pages(built)
    first, second, other, salted = (sequence.pages for sequence in built.scheduler.running)
    assert first[:2] == second[:2]
    assert len({*first, *second}) == len(first) + len(second) - 2
    assert not {*first} & {*other}
    assert not {*first, *second} & {*salted}
    assert built.stats().prefix_cache_hits == 0, "virtual tokens are not a part of prompts"
    run(built)
    assert built.prefix_cache.num_used_pages == 0


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("length", [30, 64, 100])
def test_cached_pages_change_nothing(prefixes: dict[str, PrefixAdapter], name: str, length: int) -> None:
    built, item = made(prefixes), asked(prompt(4, length), name, max_tokens=5)
    expected = alone(prefixes, item)
    count = LENGTHS[name]
    known = max(0, (count + length - 1) // PAGE_SIZE * PAGE_SIZE - count)
    for cached in (0, known, known):
        before = built.stats()
        built.add_request(item)
        answer: Answer = []
        while built.has_unfinished_requests():
            for output in built.step():
                assert output.num_cached_tokens == cached
                answer += [(t, e.logprob) for t, e in zip(output.token_ids, output.logprobs, strict=True)]
        assert answer == expected
        after = built.stats()
        assert after.prefix_cache_queries - before.prefix_cache_queries == length
        assert after.prefix_cache_hits - before.prefix_cache_hits == cached


def test_an_evicted_prefix_is_written_again(prefixes: dict[str, PrefixAdapter]) -> None:
    built, item = made(prefixes, pages=10), asked(prompt(1, 40), "long")
    expected = alone(prefixes, item)
    assert run(built, item)[item.request_id] == expected
    run(built, request("plain", prompt(5, 280), logprobs=0))  # takes every page
    assert run(built, item)[item.request_id] == expected


def test_guesses_come_true_under_a_prefix(prefixes: dict[str, PrefixAdapter]) -> None:
    item = asked(prompt(9, 6) * 12, "long", logit_bias={5: 90.0}, max_tokens=30)
    built = made(prefixes, guess_cost=0.0)
    assert run(built, item)[item.request_id] == alone(prefixes, item)
    assert built.stats().num_accepted_tokens > 0


@pytest.mark.parametrize("name", LENGTHS)
def test_log_probabilities_of_a_prompt(prefixes: dict[str, PrefixAdapter], name: str) -> None:
    ids = prompt(2, 70)
    scores = MODEL.kernels.log_softmax(MODEL.logits(hidden_rows(MODEL, ids, prefixes[name])))
    built = made(prefixes, max_num_batched_tokens=17)
    item = asked(ids, name, prompt_logprobs=2, max_tokens=3)
    expected = alone(prefixes, asked(ids, name, max_tokens=3))
    for length in (70, 70, 66):
        output = finish(built, asked(ids[:length], name, prompt_logprobs=2, max_tokens=1))
        assert output.prompt_logprobs is not None
        first, *rest = output.prompt_logprobs
        assert first is None
        assert [(one.token_id, one.logprob, len(one.top)) for one in rest if one is not None] == [
            (token, float(row[token]), 2) for row, token in zip(scores, ids[1:length], strict=False)
        ]
        assert output.num_cached_tokens == 0
        check_pages(built)
    assert run(built, replace(item, params=item.params.replace(prompt_logprobs=None)))[item.request_id] == expected


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("pages", [64, 6])
def test_embeddings_are_of_the_text_alone(prefixes: dict[str, PrefixAdapter], name: str, pages: int) -> None:
    ids = prompt(2, 90)
    rows = MODEL.final_norm(hidden_rows(MODEL, ids, prefixes[name])).astype(np.float64)
    mean = rows.mean(axis=0)
    built = made(prefixes, pages, max_num_batched_tokens=17)
    # An older neighbor, for which the text to embed gives up its pages where there are few of them.
    built.add_request(request("older", prompt(1, 20), max_tokens=pages * PAGE_SIZE - 25 if pages < 64 else 20))
    built.step()
    item = replace(asked(ids, name), pooling="mean")
    built.add_request(item)
    outputs: dict[str, GenerationOutput] = {}
    while built.has_unfinished_requests():
        outputs |= {output.request_id: output for output in built.step()}
    found = outputs[item.request_id].embedding
    assert found is not None
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)


def test_virtual_tokens_take_their_part_of_the_context(prefixes: dict[str, PrefixAdapter]) -> None:
    built = made(prefixes, max_model_len=100)
    with pytest.raises(PromptTooLongError, match="30 tokens and the adapter 70; the context holds 100"):
        built.add_request(asked(prompt(1, 30), "long"))
    output = finish(built, asked(prompt(1, 20), "long", max_tokens=None, ignore_eos=True))
    assert output.finish_reason == "length"
    answer = run(built, asked(prompt(1, 20), "long", max_tokens=None, ignore_eos=True))
    assert len(answer["long-20"]) == 10
    built.add_request(replace(asked(prompt(1, 30), "long"), pooling="mean"))
    assert built.step()[0].embedding is not None


def test_unloading_lets_go_of_a_prefix(tmp_path: Path) -> None:
    prefix = random_prefix(tmp_path, CONFIG, 70, 8)
    watched, item = weakref.ref(prefix), asked(prompt(1, 20), "name")
    expected = alone({"name": prefix}, item)
    built = made({"name": prefix})
    del prefix
    built.add_request(item)
    built.adapters.remove("name")
    assert run(built)[item.request_id] == expected
    gc.collect()
    assert watched() is None
    built.adapters.add("name", random_prefix(tmp_path, CONFIG, 70, 9))
    output = finish(built, item)
    assert output.num_cached_tokens == 0
    assert run(built, item)[item.request_id] != expected


def test_a_prefix_that_overflows_ends_its_own_requests_only(adapters: dict[str, Adapter], tmp_path: Path) -> None:
    built = made({**adapters, "huge": random_prefix(tmp_path, CONFIG, 40, 6, scale=8e37)})
    item, broken = asked(prompt(1, 40), "long"), asked(prompt(1, 40), "huge")
    for each in (broken, item):
        built.add_request(each)
    first = {output.request_id: output for output in built.step()}
    assert first[broken.request_id].finish_reason == "abort"
    output = first[item.request_id]
    begun = output.token_ids[0], output.logprobs[0].logprob
    assert [begun, *run(built)[item.request_id]] == alone(adapters, item)
    assert built.prefix_cache.num_used_pages == 0


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("cache_dtype", ["fp32", "fp16", "int8"])
def test_pages_on_disk_belong_to_the_content_of_a_prefix(
    prefixes: dict[str, PrefixAdapter], name: str, cache_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONS, "kv_dtype", cache_dtype)
    prefix, document = prefixes[name], prompt(0, 200)

    def ask(adapter: Adapter | None, ids: list[int], pages: int = 64) -> tuple[Answer, int]:
        """In another process, as far as the store is concerned."""
        cache = KVCache(CONFIG, pages, cache_dtype)
        store = kv_store(cache, tmp_path, min_tokens=150)
        built = Engine(MODEL, cache, min(512, pages * PAGE_SIZE), SchedulerConfig(), page_store=store)
        if adapter is not None:
            built.adapters.add("it", adapter)
        answer = run(built, asked(ids, None if adapter is None else "it"))
        settle(store)
        return next(iter(answer.values())), built.stats().kv_store_hits

    expected = alone({"it": prefix}, asked(document, "it"))
    known = (LENGTHS[name] + 199) // PAGE_SIZE * PAGE_SIZE - LENGTHS[name]
    assert ask(prefix, document) == (expected, 0)
    assert len(page_files(tmp_path)) == (LENGTHS[name] + 200) // PAGE_SIZE - LENGTHS[name] // PAGE_SIZE
    assert ask(replace(prefix), document) == (expected, known), "loaded again"
    longer = [*document, *prompt(5, 70)]
    assert ask(prefix, longer, pages=12) == (alone({"it": prefix}, asked(longer, "it")), known)
    assert ask(prefix, longer)[1] > known, "what was new has been kept as well"
    assert ask(replace(prefix, values=-prefix.values), document)[1] == 0
    assert ask(None, document) == (alone({}, asked(document, None)), 0)
    ids = [*document[:150], *prompt(6, 50)]
    assert ask(prefix, ids)[0] == alone({"it": prefix}, asked(ids, "it"))


def test_pages_that_vanish_from_disk_are_computed(prefixes: dict[str, PrefixAdapter], tmp_path: Path) -> None:
    item = asked(prompt(0, 200), "long")

    def process() -> Engine:
        cache = KVCache(CONFIG, 64, "fp32")
        built = Engine(MODEL, cache, 512, SchedulerConfig(), page_store=kv_store(cache, tmp_path))
        built.adapters.add("long", prefixes["long"])
        return built

    expected, kept = alone(prefixes, item), 6
    for missing in range(kept):
        built = process()
        assert run(built, item)[item.request_id] == expected
        assert built._stored is not None
        settle(built._stored.store)
        built = process()
        built.add_request(item)
        built.scheduler.admit()
        (sequence,) = built.scheduler.running
        assert (sequence.num_awaited_pages, sequence.num_shared_pages, sequence.num_computed) == (8, 2, 70)
        assert sequence.page_keys is not None
        page_files(tmp_path)[missing].unlink()
        assert run(built)[item.request_id] == expected
        settle(built._stored.store if built._stored is not None else None)


def test_a_picture_behind_a_prefix(tmp_path: Path) -> None:
    """Its rows share positions, which count from the prefix on."""
    prefix = random_prefix(tmp_path, seeing.CONFIG, 40, 3)
    wanted = seeing.prompt(seeing.words(1, 9), "a", seeing.words(2, 30))
    model = seeing.MODELS["fp32"]
    assert model.vision is not None
    encoding = model.vision.start(seeing.PIXELS["a"])
    while encoding.result is None:
        encoding.advance(1 << 20)
    (span,) = wanted.spans
    assert span.offsets is not None
    behind = 40 + 9 + span.offsets[-1] + 1
    positions = [*range(40, 49), *(49 + offset for offset in span.offsets), *range(behind, behind + 30)]
    rows = hidden_rows(
        model, list(wanted.ids), prefix, positions=np.array(positions, np.int32), rows=[(9, encoding.result)]
    )
    scores = model.kernels.log_softmax(model.logits(rows[-1:]))[0]
    plain = seeing.alone(seeing.ask("x", wanted))
    for chunk in (24, 512):
        built = seeing.engine(max_num_batched_tokens=chunk)
        built.adapters.add("it", prefix)
        item = replace(seeing.ask("x", wanted, logprobs=0), adapter="it")
        for cached in (0, (40 + len(wanted.ids) - 1) // PAGE_SIZE * PAGE_SIZE - 40):
            output = finish(built, replace(item, params=item.params.replace(max_tokens=1)))
            assert output.num_cached_tokens == cached
            assert (output.token_ids[0], output.logprobs[0].logprob) == (int(scores.argmax()), float(scores.max()))
        others = [replace(seeing.ask(name, wanted, logprobs=5), adapter=None) for name in "yz"]
        assert seeing.run(built, *others)["y"] == plain
