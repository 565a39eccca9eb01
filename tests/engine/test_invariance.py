"""What a sequence gets depends on nothing but itself: tokens and log-probabilities, bit for bit.

Not on neighbours (with other LoRA adapters or none), batch size, prefill chunks, speculation, prefix cache or threads;
for every instruction set, weight format and cache format. The widths are no multiples of a span (128) or a block (32),
as in no real model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from test_engine import CONFIG, prompt, request

from adapter_files import packed_adapter
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.kernels import _native, get_kernels
from glm4.loading.weights import random_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer

WIDE = replace(CONFIG, vocab_size=301, hidden_size=168, intermediate_size=292, num_attention_heads=6, head_dim=48)
# Around the page size, one long one, some that repeat themselves (for speculation), two that begin alike.
LENGTHS = (1, 7, 31, 32, 33, 150, 64, 65, 20)


ADAPTERS = {"one": packed_adapter(WIDE, 1, 5, "fp32"), "two": packed_adapter(WIDE, 2, 40, "bf16")}
WHICH = [None, "one", "two"]


@dataclass(frozen=True)
class Setting:
    """A model on one instruction set, and the cache format beside it."""

    model: Transformer
    kv_dtype: str


BEST, *OTHERS = _native.isas()


@pytest.fixture(scope="module", params=[BEST, *(pytest.param(isa, marks=pytest.mark.thorough) for isa in OTHERS)])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8", "int4"])
def model(request: pytest.FixtureRequest, isa: str) -> Transformer:
    return random_model(WIDE, PRECISIONS[request.param], get_kernels("native"), seed=3)


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def setting(request: pytest.FixtureRequest, model: Transformer) -> Setting:
    return Setting(model, request.param)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = get_kernels("native").num_threads()
    yield
    get_kernels("native").set_num_threads(before)


def items() -> list[GenerationRequest]:
    made = []
    for index, length in enumerate(LENGTHS):
        ids = prompt(0 if index in (6, 7) else index, length)
        ids = (ids[:5] * 40)[:length] if index % 3 == 2 else ids
        item = request(f"r{index}", ids, max_tokens=8, logprobs=20, logit_bias={5: 0.4} if index % 3 == 2 else None)
        made.append(replace(item, adapter=WHICH[index // 2 % 3]))
    return made


def answers(
    setting: Setting, wanted: list[GenerationRequest], threads: int = 1, caching: bool = False, **limits: int
) -> dict[str, list[object]]:
    """Request id → its tokens with their log-probabilities, all requests run at once."""
    get_kernels("native").set_num_threads(threads)
    cache = KVCache(WIDE, 64, setting.kv_dtype)
    config = SchedulerConfig(**{"max_num_seqs": 9, "max_speculative_rows": 0} | limits)
    engine = Engine(setting.model, cache, WIDE.max_position_embeddings, config, enable_prefix_caching=caching)
    for name, adapter in ADAPTERS.items():
        engine.adapters.add(name, adapter)
    found: dict[str, list[object]] = {item.request_id: [] for item in wanted}
    for item in wanted:
        engine.add_request(item)
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[output.request_id] += zip(output.token_ids, output.logprobs, strict=True)
    return found


@pytest.fixture(scope="module")
def alone(setting: Setting) -> dict[str, list[object]]:
    """Each request in an engine of its own, on one thread."""
    return {name: answer for item in items() for name, answer in answers(setting, [item]).items()}


def test_batch_size(setting: Setting, alone: dict[str, list[object]]) -> None:
    wanted = items()
    for size in range(2, len(wanted) + 1):
        for name, answer in answers(setting, wanted[-size:]).items():
            assert answer == alone[name], (size, name)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2},
        {"threads": 3},
        {"max_num_batched_tokens": 7, "max_prefill_beside_decode": 3},
        {"max_num_batched_tokens": 33, "threads": 2},
        {"max_speculative_rows": 8},
        {"caching": True},
        {"max_speculative_rows": 9, "caching": True, "threads": 3, "max_num_batched_tokens": 20, "max_num_seqs": 3},
    ],
    ids=str,
)
def test_chunks_speculation_cache_and_threads(
    setting: Setting, alone: dict[str, list[object]], options: dict[str, int]
) -> None:
    # Twice the same requests, so that the second half finds the first one's pages where they are kept.
    again = [replace(item, request_id=f"{item.request_id}+") for item in items()]
    for name, answer in answers(setting, items() + again, **options).items():  # type: ignore[arg-type]
        assert answer == alone[name.rstrip("+")], name


def logits_of(setting: Setting, ids: list[list[int]], threads: int) -> list[np.ndarray]:
    """All logits of sequences that go through the model in one pass, prefill and single rows mixed."""
    get_kernels("native").set_num_threads(threads)
    pages = [list(range(100))[i * 6 :][: pages_for(len(row))] for i, row in enumerate(ids)]
    cache = KVCache(WIDE, 6 * len(ids), setting.kv_dtype)
    adapters = [None if row[0] % 3 == 0 else ADAPTERS[("one", "two")[row[0] % 3 - 1]] for row in ids]
    batch = ForwardBatch.build(pages, [0] * len(ids), [len(row) for row in ids], adapters)
    flat = np.concatenate([np.asarray(row, np.int32) for row in ids])
    logits = setting.model.logits(setting.model.forward(flat, batch, cache))
    return np.split(logits, np.cumsum([len(row) for row in ids])[:-1])


def test_every_logit_of_every_row(setting: Setting) -> None:
    assert max(LENGTHS) <= 6 * PAGE_SIZE
    ids = [list(item.prompt_ids) for item in items()]
    single = [logits_of(setting, [row], 1)[0] for row in ids]
    for threads in (1, 2, 3):
        for one, together in zip(single, logits_of(setting, ids, threads), strict=True):
            np.testing.assert_array_equal(one, together)
