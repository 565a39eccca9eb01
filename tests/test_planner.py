"""The planner against what the engine really allocates, the published shapes, and its own promises."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tiny_vision
from glm4.backends.local import LocalOptions
from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.kernels import get_kernels
from glm4.loading.memory_estimate import Wanted, cache_size, choose_precision, estimates
from glm4.loading.weights import random_model
from glm4.model.kv_cache import CACHE_SHARE, KVCache, pages_for
from glm4.model.precision import PRECISIONS, packed_dtype
from glm4.model.shapes import SHAPES
from glm4.model.tensors import num_parameters
from glm4.planner import MemoryPlan, plan
from glm4.system.memory import Room
from glm4.variants import VARIANTS

CHAT = SHAPES["glm-4-9b-chat"]
GB = 10**9


def total_without(result: MemoryPlan) -> int:
    return result.total_weights + result.runtime + result.kv_cache + result.activations


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_model_has_its_shape(name: str) -> None:
    assert num_parameters(SHAPES[name]) == VARIANTS[name].parameters
    assert SHAPES[name].max_position_embeddings == VARIANTS[name].context


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"architecture": "glm4", "attention_bias": False}]
)
def test_weights_are_what_the_engine_packs(dtype: str, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(
        CHAT, vocab_size=1000, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        head_dim=16, **changes,
    )  # fmt: skip
    model = random_model(config, PRECISIONS[dtype], get_kernels("reference"))
    layers = model.weights.layers
    packed = {
        "embeddings": model.weights.embed_tokens.data.nbytes,
        "attention": sum(layer.qkv.data.nbytes + layer.o.data.nbytes for layer in layers),
        "mlp": sum(layer.gate_up.data.nbytes + layer.down.data.nbytes for layer in layers),
        "head": 0 if config.tie_word_embeddings else model.weights.lm_head.data.nbytes,
    }
    biases = sum(layer.qkv_bias.nbytes for layer in layers if layer.qkv_bias is not None)
    norms = [model.weights.norm]
    for layer in layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [norm for norm in (layer.post_self_attn_layernorm, layer.post_mlp_layernorm) if norm is not None]
    expected = packed | {"attention": packed["attention"] + biases, "norms": sum(norm.nbytes for norm in norms)}
    assert dict(plan(config, dtype=dtype, context=64).weights) == expected


@pytest.mark.parametrize(("kv_dtype", "itemsize"), [("fp16", 2), ("fp32", 4)])
def test_kv_cache_is_what_the_engine_allocates(kv_dtype: str, itemsize: int) -> None:
    config = dataclasses.replace(CHAT, num_hidden_layers=2)
    result = plan(config, kv_dtype=kv_dtype, context=70, batch=3)  # 70 tokens: three pages of 32
    cache = KVCache(config, 3 * pages_for(70), kv_dtype)
    assert result.kv_cache == sum(array.nbytes for array in [*cache.keys, *cache.values])
    assert result.kv_cache == 3 * 96 * 2 * 2 * 2 * 128 * itemsize


def test_an_int8_cache_is_about_half_of_fp16() -> None:
    config = dataclasses.replace(CHAT, num_hidden_layers=2)
    result = plan(config, kv_dtype="int8", context=70, batch=3)
    cache = KVCache(config, 3 * pages_for(70), "int8")
    assert result.kv_cache == sum(array.nbytes for array in [*cache.keys, *cache.values])
    assert result.kv_cache == 3 * 96 * 2 * 2 * 2 * (128 + 4)  # a number a channel, and a float32 scale
    longest = {
        kv: plan(CHAT, dtype="int4", kv_dtype=kv, available_memory=10**10).largest_context for kv in ("fp16", "int8")
    }
    assert 1.9 < longest["int8"] / longest["fp16"] < 1.95


def test_an_int8_cache_of_odd_heads_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="multiple of 16"):
        plan(dataclasses.replace(CHAT, head_dim=72), kv_dtype="int8")


@pytest.mark.parametrize(
    ("name", "kib_per_token"), [("glm-4-9b-chat", 40), ("glm-4-9b-chat-1m", 80), ("starter", 12), ("smoke", 22.5)]
)
def test_kv_cache_per_token(name: str, kib_per_token: float) -> None:
    assert plan(SHAPES[name], context=1024, dtype="int8").kv_cache == 1024 * kib_per_token * 1024


def test_the_9b_model_in_int4() -> None:
    result = plan(CHAT, dtype="int4", context=8192, available_memory=12 * GB)
    assert 8 * result.total_weights < 4.6 * num_parameters(CHAT)
    assert total_without(result) < 7 * GB
    assert result.fits
    # Matrices are packed a slab at a time: loading needs no fp32 copy of the head (2.5 GB).
    assert result.loading < 0.3 * GB


@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_the_whole_context_of_the_9b_model_fits_into_24_gigabytes(dtype: str, kv_dtype: str) -> None:
    result = plan(CHAT, dtype=dtype, kv_dtype=kv_dtype, context=131_072, available_memory=24 * GB)
    assert result.fits
    assert result.total < (11.7 if dtype == "int4" else 15.4) * GB
    assert result.kv_cache == 131_072 * 40 * (256 if kv_dtype == "fp16" else 132) * 2 * 2


def test_a_million_tokens_of_the_1m_model() -> None:
    """Twice the KV heads: 86 GB of keys and values in fp16, 44 GB in int8."""
    config = SHAPES["glm-4-9b-chat-1m"]
    assert config.max_position_embeddings == 1 << 20
    needed = {
        kv: plan(config, dtype="int4", kv_dtype=kv, context=1 << 20, available_memory=128 * GB)
        for kv in ("fp16", "int8")
    }
    assert 85 * GB < needed["fp16"].kv_cache < 87 * GB
    assert 44 * GB < needed["int8"].kv_cache < 45 * GB
    assert needed["int8"].fits
    assert needed["int8"].total < 51 * GB
    here = plan(config, dtype="int4", kv_dtype="int8", available_memory=24 * GB)
    assert 260_000 < here.largest_context < 270_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_cache_takes_memory_only_where_it_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    config = dataclasses.replace(CHAT, num_hidden_layers=2)
    before = resident()
    cache = KVCache(config, pages_for(1 << 20), "fp16")  # 2 GB of address space
    for page in cache.allocate(64):
        for array in (*cache.keys, *cache.values):
            array[page] = 1
    # 64 pages are 4 MB; the system may hand out memory in pieces of 2 MB, for each of four arrays.
    assert resident() - before < 64 << 20


@pytest.mark.parametrize(("gigabytes", "dtype", "fits"), [(40, "int8", True), (10, "int4", True), (4, "int4", False)])
def test_auto_is_int8_then_int4(gigabytes: int, dtype: str, fits: bool) -> None:
    result = plan(CHAT, available_memory=gigabytes * GB)
    assert (result.dtype, result.fits) == (dtype, fits)


def test_kv_dtype_auto_follows_the_weights() -> None:
    assert plan(CHAT, dtype="fp32").kv_dtype == "fp32"
    assert plan(CHAT, dtype="bf16").kv_dtype == "fp16"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    available=st.integers(0, 200 * GB),
    batch=st.integers(1, 32),
    dtype=st.sampled_from(["auto", *PRECISIONS]),
)
@example("glm-4-9b", 10_056_022_976, 1, "auto")
def test_largest_context_fits_and_the_next_page_does_not(name: str, available: int, batch: int, dtype: str) -> None:
    config = SHAPES[name]
    best = plan(config, dtype=dtype, batch=batch, available_memory=available)
    assert 0 <= best.largest_context <= config.max_position_embeddings
    if best.largest_context:
        assert best.context == best.largest_context
        assert best.fits
        assert best.total <= available
        assert best.kv_cache <= CACHE_SHARE * (available - best.total_weights)
    else:
        assert not best.fits
    following = best.largest_context + 1
    if following <= config.max_position_embeddings:  # in the same format: "auto" may go on to a smaller one
        assert not plan(config, dtype=best.dtype, batch=batch, available_memory=available, context=following).fits


@pytest.mark.parametrize(("long", "short"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_formats_may_be_called_as_pytorch_calls_them(long: str, short: str) -> None:
    for available in (200 << 30, 1 << 30):  # also if it does not fit
        found = plan(CHAT, dtype=long, kv_dtype="float16", available_memory=available)
        assert found == plan(CHAT, dtype=short, kv_dtype="fp16", available_memory=available)
    assert packed_dtype(long, PRECISIONS[short]) == short


def test_requests_that_make_no_sense() -> None:
    for dtype in ("float16", "half", "fp16"):
        with pytest.raises(InvalidRequestError, match=f"dtype {dtype} is not a weight format .*: bf16 takes the same"):
            plan(CHAT, dtype=dtype)
    with pytest.raises(InvalidRequestError, match="dtype must be one of"):
        plan(CHAT, dtype="int3")
    with pytest.raises(InvalidRequestError, match="KV cache format must be one of"):
        plan(CHAT, kv_dtype="fp8")
    with pytest.raises(InvalidRequestError, match=r"context of 131073 tokens .* the 131072 this model"):
        plan(CHAT, context=131073)
    with pytest.raises(InvalidRequestError, match="batch"):
        plan(CHAT, batch=0)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    available=st.integers(10**8, 100 * GB),
    dtype=st.sampled_from(["auto", *PRECISIONS]),
    context=st.none() | st.integers(1, 8192),
    mapped=st.sampled_from([(), ("int8",), ("int4",), ("int8", "int4")]),
)
def test_the_loader_takes_what_the_plan_says(
    name: str, available: int, dtype: str, context: int | None, mapped: tuple[str, ...]
) -> None:
    """Format, context, and whether it fits at all, whatever the room."""
    config, room = SHAPES[name], Room(available)
    result = plan(config, dtype=dtype, context=context, available_memory=available, mapped=mapped)
    wanted = Wanted(dtype, context=context)
    try:
        estimate = choose_precision(config, wanted, room, mapped=mapped)
        pages, length = cache_size(estimate, wanted, 8, room)
    except OutOfMemoryError:
        assert not result.fits
        return
    assert result.fits
    assert (estimate.precision.name, estimate.mapped) == (result.dtype, result.mapped)
    assert length == result.context
    assert pages_for(length) <= pages <= 8 * pages_for(length)
    assert estimate.total(length) <= available


def test_a_running_process_is_not_counted_twice() -> None:
    """What the program has taken is part of the estimate, so it is added to what is free; other memory is not."""
    estimate = choose_precision(SHAPES["starter"], Wanted("int8"), Room(10 * GB))
    assert estimate.available(Room(GB, 10_000_000)) == GB + 10_000_000
    assert estimate.available(Room(GB, 50 * GB)) == GB + estimate.program
    here = Room.here()
    assert 10_000_000 < here.taken < 20 * GB
    assert here.free > 0


def test_a_packed_file_needs_no_room_for_packing() -> None:
    first = plan(SHAPES["starter"], dtype="int8", context=2048)
    later = plan(SHAPES["starter"], dtype="int8", context=2048, mapped=("int8",))
    assert (first.mapped, later.mapped) == (False, True)
    assert later.loading == 0
    assert 0.6 * first.total < later.total < 0.75 * first.total
    # In between, the first start must take int4, and a later one finds int8.
    between = (first.total + later.total) // 2
    config = SHAPES["starter"]
    assert plan(config, context=2048, available_memory=between).dtype == "int4"
    assert plan(config, context=2048, available_memory=between, mapped=("int8",)).dtype == "int8"


def test_pictures_that_are_kept_have_room() -> None:
    config, one = SHAPES["glm-4v-9b"], 4 * 1602 * 4096

    def pictures(options: LocalOptions, sequences: int = 1) -> int:
        return estimates(config, options.wanted)[0].pictures(sequences)

    assert pictures(LocalOptions()) == 10 * one  # 256 MiB
    assert pictures(LocalOptions(picture_cache_memory=3 * one - 1)) == 2 * one
    assert pictures(LocalOptions(picture_cache_memory=0)) == one  # of the request that runs
    assert pictures(LocalOptions(picture_cache_memory=0), sequences=4) == 4 * one
    result = plan(config, dtype="int4", context=4096, batch=2)
    assert result.pictures == 11 * one
    assert result.total == total_without(result) + result.pictures
    assert plan(CHAT).pictures == 0
    # What is not kept is left for the context.
    room = Room(8_790_000_000)
    kept, none = (
        estimates(config, LocalOptions("int4", picture_cache_memory=nbytes).wanted)[0].largest_context(room)
        for nbytes in (10 * one, 0)
    )
    assert 0 < kept < none < config.max_position_embeddings


def test_a_kept_picture_takes_what_the_tower_returns() -> None:
    vision = tiny_vision.model(get_kernels()).vision
    assert vision is not None
    encoding = vision.start(tiny_vision.pixels())
    while encoding.result is None:
        encoding.advance(1 << 20)
    (estimate,) = estimates(tiny_vision.CONFIG, Wanted("fp32", picture_cache_nbytes=0))
    assert estimate.pictures() == encoding.result.nbytes


def test_measures_this_machine_when_not_told() -> None:
    assert plan(SHAPES["smoke"], context=64).available > 0
    assert np.isfinite(plan(SHAPES["smoke"]).total)
