"""Embeddings in the engine: the mean of all hidden states, whatever else runs and however the prompt is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from test_engine import CONFIG, MODEL, engine, prompt, request

from adapter_files import random_adapter
from glm4.engine.engine import Engine
from glm4.engine.pooling import MeanPool
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.errors import Glm4Error, InvalidRequestError, PromptTooLongError
from glm4.kernels.reference import REFERENCE
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.lora import LoraAdapter

LENGTHS = (1, 2, 31, 32, 33, 200, 90)


def embedding_request(name: str, ids: list[int], **fields: str) -> GenerationRequest:
    return replace(request(name, ids), pooling="mean", **fields)  # type: ignore[arg-type]


def items() -> list[GenerationRequest]:
    return [embedding_request(f"e{i}", prompt(i, length)) for i, length in enumerate(LENGTHS)]


def run(built: Engine, *wanted: GenerationRequest) -> dict[str, GenerationOutput]:
    """Request id → its last output."""
    for item in wanted:
        built.add_request(item)
    last: dict[str, GenerationOutput] = {}
    while built.has_unfinished_requests():
        last |= {output.request_id: output for output in built.step()}
    return last


def vector(built: Engine, item: GenerationRequest) -> NDArray[np.float32]:
    output = run(built, item)[item.request_id]
    assert output.finish_reason == "stop"
    assert output.token_ids == ()
    assert output.embedding is not None
    return output.embedding


def expected(ids: list[int], adapter: LoraAdapter | None = None) -> NDArray[np.float32]:
    """In NumPy, from the hidden states of one forward pass."""
    pages = list(range(pages_for(len(ids))))
    batch = ForwardBatch.build([pages], [0], [len(ids)], [adapter])
    hidden = MODEL.forward(np.array(ids, np.int32), batch, KVCache(CONFIG, len(pages), "fp32"))
    normed = REFERENCE.rms_norm(hidden, MODEL.weights.norm, CONFIG.rms_norm_eps)
    mean = normed.astype(np.float64).mean(axis=0)
    return (mean / np.sqrt((mean**2).sum())).astype(np.float32)


def test_it_is_the_mean_of_the_normed_hidden_states_of_length_one() -> None:
    for item in items():
        found = vector(engine(), item)
        assert found.dtype == np.float32
        assert found.shape == (CONFIG.hidden_size,)
        np.testing.assert_allclose(found, expected(list(item.prompt_ids)), rtol=0, atol=1e-6)
        assert np.linalg.norm(found.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
    assert np.abs(expected(prompt(2, 31)) - expected(prompt(3, 32))).max() > 0.05


@pytest.mark.parametrize(
    ("pages", "scheduler"),
    [
        (64, {"max_num_seqs": 16}),
        (64, {"max_num_batched_tokens": 17, "max_prefill_beside_decode": 5}),
        (64, {"max_num_batched_tokens": 1}),
        (8, {"max_num_seqs": 16}),
    ],
    ids=["plenty", "small chunks", "one by one", "short of pages"],
)
def test_neighbours_chunks_and_preemption_change_no_bit(pages: int, scheduler: dict[str, Any]) -> None:
    generating = [request(f"g{i}", prompt(i, length), max_tokens=40) for i, length in enumerate(LENGTHS)]
    wanted = [item for pair in zip(generating, items(), strict=True) for item in pair]
    built = engine(pages, **scheduler)
    outputs = run(built, *wanted)
    for item in items():
        found = outputs[item.request_id].embedding
        assert found is not None
        np.testing.assert_array_equal(found, vector(engine(), item))
    assert built.prefix_cache.num_available_pages == pages


def test_a_preempted_text_counts_no_position_twice() -> None:
    """A stream that grows takes the pages of the text behind it, half of which has been summed up by then."""
    built = engine(pages=6, max_prefill_beside_decode=1, max_speculative_rows=0)
    built.add_request(request("g", prompt(50, 30), max_tokens=100))
    built.step()
    text = embedding_request("e", prompt(51, 100))
    found = run(built, text)["e"].embedding
    assert built.scheduler.num_preemptions > 0
    assert found is not None
    np.testing.assert_array_equal(found, vector(engine(), text))


def test_known_pages_are_not_used_and_none_are_kept() -> None:
    built = engine()
    ids = prompt(7, 3 * PAGE_SIZE + 4)
    run(built, request("g", ids, max_tokens=2))
    before = built.cache.num_free_pages
    output = run(built, embedding_request("e", ids))["e"]
    assert output.embedding is not None
    assert output.num_cached_tokens == 0
    np.testing.assert_array_equal(output.embedding, vector(engine(), embedding_request("e", ids)))
    assert built.cache.num_free_pages == before
    assert built.stats().prefix_cache_queries == len(ids)


def test_under_an_adapter(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path, CONFIG, 1)
    built = engine()
    built.adapters.add("a", adapter)
    ids = prompt(7, 50)
    outputs = run(built, embedding_request("plain", ids), embedding_request("adapted", ids, adapter="a"))
    plain, adapted = outputs["plain"].embedding, outputs["adapted"].embedding
    assert plain is not None
    assert adapted is not None
    np.testing.assert_allclose(plain, expected(ids), rtol=0, atol=1e-6)
    np.testing.assert_allclose(adapted, expected(ids, adapter), rtol=0, atol=1e-6)
    assert np.abs(plain - adapted).max() > 0.05


def test_a_text_may_fill_the_context_but_not_exceed_it() -> None:
    built = engine(pages=2)
    assert vector(built, embedding_request("e", prompt(1, 2 * PAGE_SIZE))).shape == (CONFIG.hidden_size,)
    with pytest.raises(PromptTooLongError):
        built.add_request(embedding_request("e", prompt(1, 2 * PAGE_SIZE + 1)))
    with pytest.raises(PromptTooLongError):
        built.add_request(request("g", prompt(1, 2 * PAGE_SIZE)))
    assert built.prefix_cache.num_available_pages == 2


class Anything:
    """A grammar; nobody gets to ask it."""

    own_ends: frozenset[int] = frozenset()

    def start(self) -> NoReturn:
        pytest.fail("an embedding follows no grammar")


def test_prompt_logprobs_and_grammars_of_an_embedding_are_refused() -> None:
    item = embedding_request("e", prompt(1, 5))
    with pytest.raises(InvalidRequestError, match="grammar"):
        engine().add_request(replace(item, constraint=Anything()))
    with pytest.raises(InvalidRequestError, match="prompt_logprobs"):
        engine().add_request(replace(item, params=item.params.replace(prompt_logprobs=1)))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_no_numbers_no_embedding(value: float) -> None:
    pool = MeanPool()
    pool.add(0, np.full((2, 4), value, np.float32))
    with pytest.raises(Glm4Error, match="no finite hidden states"):
        pool.result()


def test_positions_that_come_again_do_not_count_again() -> None:
    rows = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    whole, again = MeanPool(), MeanPool()
    whole.add(0, rows)
    again.add(0, rows[:6])
    for first, last in ((0, 4), (4, 7), (7, 10)):
        again.add(first, rows[first:last])
    np.testing.assert_array_equal(again.result(), whole.result())
