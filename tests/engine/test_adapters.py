"""LoRA adapters in the engine: rows with and without them share batches, and never pages or answers."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import CONFIG, MODEL, engine, mixed_requests, prompt, request

from adapter_files import random_adapter
from glm4.engine.adapters import AdapterTable
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.kernels import get_kernels
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.layers import ModelWeights
from glm4.model.lora import LoraAdapter, LoraFactors

Answer = list[tuple[int, float]]
# All modules; attention only; one matrix only.
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"seed": 1},
    "attention": {"seed": 2, "targets": ("q_proj", "v_proj"), "rank": 4},
    "down": {"seed": 3, "targets": ("down_proj",), "scale": 0.8},
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: random_adapter(folder, CONFIG, **options) for name, options in ADAPTERS.items()}


def made(adapters: dict[str, LoraAdapter], pages: int = 64, caching: bool = True, **scheduler: Any) -> Engine:
    built = engine(pages, caching=caching, **scheduler)
    for name, adapter in adapters.items():
        built.adapters.add(name, adapter)
    return built


def with_adapter(item: GenerationRequest, adapter: str | None) -> GenerationRequest:
    return replace(item, request_id=f"{item.request_id}-{adapter}", adapter=adapter)


def run(built: Engine, *items: GenerationRequest) -> dict[str, Answer]:
    """Request id → its tokens with their log-probabilities."""
    for item in items:
        built.add_request(item)
    answers: dict[str, Answer] = {}
    while built.has_unfinished_requests():
        for output in built.step():
            scored = zip(output.token_ids, (entry.logprob for entry in output.logprobs), strict=True)
            answers.setdefault(output.request_id, []).extend(scored)
    return answers


def last(built: Engine, item: GenerationRequest) -> GenerationOutput:
    built.add_request(item)
    found: list[GenerationOutput] = []
    while built.has_unfinished_requests():
        found += built.step()
    return found[-1]


def alone(adapters: dict[str, LoraAdapter], item: GenerationRequest) -> Answer:
    built = made(adapters, caching=False, max_speculative_rows=0)
    return run(built, item)[item.request_id]


def scored(name: str, ids: list[int], **options: object) -> GenerationRequest:
    return request(name, ids, logprobs=0, **options)


@pytest.mark.parametrize(
    ("pages", "scheduler"),
    [
        (64, {"max_num_seqs": 16}),
        (64, {"max_num_batched_tokens": 17, "max_prefill_beside_decode": 5}),
        (8, {"max_num_seqs": 16}),
    ],
    ids=["plenty", "small chunks", "short of pages"],
)
def test_mixed_batches_change_no_bit(adapters: dict[str, LoraAdapter], pages: int, scheduler: dict[str, Any]) -> None:
    names = [None, *ADAPTERS]
    items = [
        with_adapter(replace(item, params=item.params.replace(logprobs=0)), names[index % len(names)])
        for index, item in enumerate(mixed_requests())
    ]
    built = made(adapters, pages, **scheduler)
    answers = run(built, *items)
    for item in items:
        assert answers[item.request_id] == alone(adapters, item), item.request_id
    assert built.prefix_cache.num_available_pages == pages
    assert built.scheduler.num_preemptions > 0 or pages > 8


def test_every_adapter_changes_the_answer(adapters: dict[str, LoraAdapter]) -> None:
    """Else the other tests would compare equal things."""
    item = scored("x", prompt(1, 40))
    logprobs = {alone(adapters, with_adapter(item, name))[0][1] for name in (None, *ADAPTERS)}
    assert len(logprobs) == 1 + len(ADAPTERS)


def test_an_adapter_is_the_sum_of_its_product_and_the_models(adapters: dict[str, LoraAdapter]) -> None:
    """Against the model whose matrices have B A added to them."""
    kernels = get_kernels()

    def merged(index: int, key: str) -> Any:
        weight = getattr(MODEL.weights.layers[index], key)
        pair: LoraFactors = adapters["all"].factors[index, key]
        total = kernels.unpack(weight) + kernels.unpack(pair.b) @ kernels.unpack(pair.a)
        return kernels.pack("fp32", total.astype(np.float32))

    changed = {
        f"layers.{index}.{key}": merged(index, key)
        for index in range(CONFIG.num_hidden_layers)
        for key in ("qkv", "o", "gate_up", "down")
    }
    other = type(MODEL)(CONFIG, ModelWeights({**MODEL.weights.tensors, **changed}), kernels)
    ids = np.array(prompt(1, 40), np.int32)

    def logits(model: Any, adapter: LoraAdapter | None) -> Any:
        pages = list(range(pages_for(len(ids))))
        batch = ForwardBatch.build([pages], [0], [len(ids)], [adapter])
        return model.logits(model.forward(ids, batch, KVCache(CONFIG, len(pages), "fp32")))

    expected = logits(other, None)
    np.testing.assert_allclose(logits(MODEL, adapters["all"]), expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_guesses_come_true_under_an_adapter(adapters: dict[str, LoraAdapter]) -> None:
    item = with_adapter(scored("x", prompt(9, 6) * 12, logit_bias={5: 90.0}, max_tokens=30), "all")
    built = made(adapters, guess_cost=0.0)
    assert run(built, item)[item.request_id] == alone(adapters, item)
    assert built.stats().num_accepted_tokens > 0


def test_pages_are_shared_under_the_same_adapter_only(adapters: dict[str, LoraAdapter]) -> None:
    built = made(adapters)
    item = scored("x", prompt(4, 3 * PAGE_SIZE + 5), max_tokens=4)
    expected = {name: alone(adapters, with_adapter(item, name)) for name in (None, *ADAPTERS)}
    for cached in (0, 3 * PAGE_SIZE):
        for name in (None, *ADAPTERS):
            which = with_adapter(item, name)
            built.add_request(which)
            answer: Answer = []
            while built.has_unfinished_requests():
                for output in built.step():
                    assert output.num_cached_tokens == cached, name
                    answer += [(t, e.logprob) for t, e in zip(output.token_ids, output.logprobs, strict=True)]
            assert answer == expected[name], name
    assert built.prefix_cache.num_available_pages == 64
    built.prefix_cache.clear()
    assert not built.prefix_cache._roots
    assert built.cache.num_free_pages == 64


def test_a_reloaded_adapter_meets_no_old_pages(tmp_path: Path) -> None:
    item = replace(scored("x", prompt(4, 3 * PAGE_SIZE), max_tokens=4), adapter="name")
    built = engine()
    for version in (1, 2, 2):
        built.adapters.add("name", random_adapter(tmp_path, CONFIG, version))
        output = last(built, item)
        assert output.num_cached_tokens == 0
        built.adapters.remove("name")


def test_unloading_finishes_what_is_queued_and_refuses_what_comes(
    adapters: dict[str, LoraAdapter], tmp_path: Path
) -> None:
    built = engine(max_num_seqs=1)
    adapter = random_adapter(tmp_path, CONFIG, 5)
    watched = weakref.ref(adapter)
    items = [replace(scored(f"r{i}", prompt(i, 20)), adapter="name") for i in range(2)]
    expected = [alone({"name": adapter}, item) for item in items]
    built.adapters.add("name", adapter)
    del adapter
    for item in items:
        built.add_request(item)
    built.step()
    assert built.stats().num_running == built.stats().num_waiting == 1
    built.adapters.remove("name")
    with pytest.raises(InvalidRequestError, match="no adapter 'name'") as caught:
        built.add_request(replace(items[0], request_id="late"))
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequestError, match="no adapter 'name'"):
        built.adapters.remove("name")
    answers = run(built)
    assert [len(answers[item.request_id]) for item in items] == [11 if i == 0 else 12 for i in range(2)]
    assert answers["r0"] == expected[0][1:]
    assert answers["r1"] == expected[1]
    del caught
    gc.collect()
    assert watched() is None


def test_limits_and_names(adapters: dict[str, LoraAdapter]) -> None:
    size = adapters["all"].nbytes
    table: AdapterTable[LoraAdapter] = AdapterTable(max_adapters=2, max_nbytes=size + 10)
    for name in ("", "x" * 257, "line\nbreak"):
        with pytest.raises(InvalidRequestError, match="printable"):
            table.add(name, adapters["all"])
    table.add("a", adapters["all"])
    with pytest.raises(InvalidRequestError, match="loaded already"):
        table.add("a", adapters["down"])
    assert table.room_for("b") == 10
    with pytest.raises(OutOfMemoryError):
        table.add("b", adapters["down"])
    table = AdapterTable(max_adapters=1, max_nbytes=1 << 30)
    table.add("a", adapters["all"])
    with pytest.raises(InvalidRequestError, match="as many as may be"):
        table.add("b", adapters["down"])


def test_an_adapter_that_overflows_ends_its_own_requests_only(adapters: dict[str, LoraAdapter], tmp_path: Path) -> None:
    built = made(adapters)
    built.adapters.add("huge", random_adapter(tmp_path, CONFIG, 6, scale=1e18))
    item = scored("x", prompt(1, 40))
    broken = [
        replace(item, request_id="a", adapter="huge"),
        replace(item, request_id="b", adapter="huge", pooling="mean"),
    ]
    broken.append(replace(item, request_id="c", adapter="huge", params=item.params.replace(prompt_logprobs=2)))
    neighbours = [with_adapter(item, None), with_adapter(item, "all")]
    for each in (*broken, *neighbours):
        built.add_request(each)
    first = {output.request_id: output for output in built.step()}
    assert [first[name].finish_reason for name in "abc"] == ["abort"] * 3
    assert first["b"].embedding is None
    answers = run(built)
    for each in neighbours:
        output = first[each.request_id]
        answer = [(output.token_ids[0], output.logprobs[0].logprob), *answers[each.request_id]]
        assert answer == alone(adapters, each)
    assert built.prefix_cache.num_used_pages == 0


def test_an_adapter_that_leaves_nothing_to_embed_ends_its_own_requests_only(
    adapters: dict[str, LoraAdapter], tmp_path: Path
) -> None:
    """Its hidden states are finite, but so large that the norm makes them zero."""
    built = made(adapters)
    built.adapters.add("large", random_adapter(tmp_path, CONFIG, 6, targets=("down_proj",), scale=1e10))
    item = request("x", prompt(1, 40))
    output = last(built, replace(item, adapter="large", pooling="mean"))
    assert (output.finish_reason, output.embedding) == ("abort", None)
    assert last(built, replace(item, adapter="all", pooling="mean")).embedding is not None


def test_adapters_come_and_go_while_another_thread_steps(adapters: dict[str, LoraAdapter]) -> None:
    built = made({"kept": adapters["all"]})
    items = [replace(scored(f"r{i}", prompt(i, 30), max_tokens=40), adapter="kept") for i in range(6)]
    done, failures = threading.Event(), list[BaseException]()

    def churn() -> None:
        try:
            while not done.is_set():
                built.adapters.add("other", adapters["down"])
                stats = built.stats()
                assert set(stats.running_adapters + stats.waiting_adapters) <= {"kept"}
                assert 0 <= stats.kv_pages_used <= stats.kv_pages_total
                built.adapters.remove("other")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    answers = run(built, *items)
    done.set()
    thread.join()
    assert not failures
    assert all(answers[item.request_id] == alone({"kept": adapters["all"]}, item) for item in items)
