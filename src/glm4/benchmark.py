"""How fast a model runs here: prefill, decode, batched and long-context decode, compared with the machine's limits.

Used by `glm4 bench` and by benchmarks/speed.py. Prompts are random ids; no prefix is shared and no token is drafted, so
every token is computed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.backends.base import Backend
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.engine.protocol import GenerationRequest
from glm4.kernels import int8_cache
from glm4.kernels.base import Kernels
from glm4.kernels.formats import random_packed
from glm4.loading.memory_estimate import Wanted, choose_precision
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import PAGE_SIZE, KVCache, page_nbytes, pages_for
from glm4.model.precision import Precision
from glm4.model.tensors import matrix_shapes
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams
from glm4.system.memory import Room

DECODE_TOKENS = 24
_BANDWIDTH_BYTES = 512 << 20
# Small enough for one core's second-level cache, with enough rows to hide reading the matrix.
_PEAK_SIZE, _PEAK_ROWS = 512, 512
_CACHE_SHARE = 0.9  # of the memory left by the weights; a benchmark may take more than a server would
_FILL_PAGES = 64  # random pages created; the rest repeat them

_Views = Callable[[NDArray[Any]], tuple[NDArray[np.int8], NDArray[np.float32]]]


@dataclass(frozen=True)
class Question:
    """One thing to measure: `batch` prompts of `context` ids each, and `new` tokens after them (1: prefill only)."""

    context: int
    new: int = 1
    batch: int = 1

    @property
    def is_prefill(self) -> bool:
        """Whether it counts the prompt's tokens rather than the answer's."""
        return self.new == 1

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache it takes."""
        return self.batch * pages_for(self.context + self.new)

    def __str__(self) -> str:
        if self.is_prefill:
            return f"prefill {self.context}"
        together = f", {self.batch} sequences" if self.batch > 1 else ""
        return f"decode at context {self.context}{together}"


_WARM_UP = Question(32, 4)


@dataclass(frozen=True)
class Rates:
    """Tokens per second: of the prompts, and of all tokens after each sequence's first (0 where there are none).

    Attributes:
        first_token: seconds until every sequence had its first token.
    """

    prefill: float
    decode: float
    first_token: float


@dataclass
class Measurement:
    """Tokens per second in each round."""

    question: Question
    rounds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds)


def prefills(lengths: Sequence[int]) -> list[Question]:
    """One question per prompt length."""
    return [Question(length) for length in lengths]


def decodes(contexts: Sequence[int], batches: Sequence[int] = (1,)) -> list[Question]:
    """Every context alone, and every further batch size at the shortest context."""
    alone = [Question(context, DECODE_TOKENS + 1) for context in contexts]
    return alone + [Question(min(contexts), DECODE_TOKENS + 1, batch) for batch in batches if batch > 1]


def backend_options(
    config: ModelConfig,
    questions: Sequence[Question],
    dtype: str = "auto",
    kv_dtype: str = "auto",
    num_threads: int | None = None,
    stored: Precision | None = None,
) -> LocalOptions:
    """Options for a backend that can answer `questions` with no more KV cache than the largest needs.

    The backend refuses a cache that does not fit next to the weights, before it creates any weight.

    Args:
        stored: the file's own precision (`Checkpoint.stored_precision`).

    Raises:
        InvalidRequestError: no such weight or KV cache format.
        OutOfMemoryError: the weights do not fit.
    """
    pages = max(question.num_pages for question in (*questions, _WARM_UP))
    room = Room.here()
    estimate = choose_precision(config, Wanted(dtype, kv_dtype, cache_nbytes=1), room, stored)
    left = estimate.available(room) - estimate.total(1)
    wanted = pages * page_nbytes(config, estimate.kv_dtype)
    return LocalOptions(
        dtype=dtype,
        max_model_len=max(question.context + question.new for question in (*questions, _WARM_UP)),
        max_num_seqs=max(question.batch for question in questions),
        kv_cache_dtype=kv_dtype,
        kv_cache_memory=max(1, min(wanted, int(_CACHE_SHARE * left))),
        num_threads=num_threads,
        enable_prefix_caching=False,
        speculation=False,
    )


def run(backend: Backend, question: Question, rng: np.random.Generator) -> Rates:
    """Compute the prompts and the tokens after them; decode time starts when the last prompt is done."""
    for request in _requests(backend, question, rng):
        backend.add_request(request)
    start = first = time.perf_counter()
    counts: dict[str, int] = {}
    before = 0
    while backend.has_unfinished_requests():
        started = len(counts) == question.batch
        for output in backend.step():
            if output.error is not None:
                raise output.error
            if output.token_ids:
                counts[output.request_id] = counts.get(output.request_id, 0) + len(output.token_ids)
        if not started and len(counts) == question.batch:
            first, before = time.perf_counter(), sum(counts.values())
    seconds, new = time.perf_counter() - first, sum(counts.values()) - before
    return Rates(question.batch * question.context / (first - start), new / seconds if new else 0.0, first - start)


def run_filled(backend: LocalBackend, question: Question, rng: np.random.Generator) -> float:
    """Decode tokens per second after contexts that are not computed: whatever the cache's pages hold (see `fill`)."""
    engine = backend.engine
    for request in _requests(backend, question, rng):
        backend.add_request(request)
        sequence = engine.scheduler.waiting.pop()
        sequence.pages = engine.prefix_cache.allocate(pages_for(question.context))
        sequence.num_computed = question.context - 1
        engine.scheduler.running.append(sequence)
    backend.step()
    start, new = time.perf_counter(), 0
    while backend.has_unfinished_requests():
        new += sum(len(output.token_ids) for output in backend.step())
    return new / (time.perf_counter() - start)


def _requests(backend: Backend, question: Question, rng: np.random.Generator) -> Iterator[GenerationRequest]:
    params = SamplingParams(temperature=0.0, max_tokens=question.new, ignore_eos=True)
    for index in range(question.batch):
        ids = rng.integers(0, backend.info.vocab_size, question.context).tolist()
        yield GenerationRequest(f"speed-{index}", Prompt(ids), params)


def fill(cache: KVCache, num_pages: int, rng: np.random.Generator) -> None:
    """Write random keys and values of about unit size into the first `num_pages` pages of every layer."""
    for keys, values in zip(cache.keys, cache.values, strict=True):
        for pages, views in ((keys[:num_pages], int8_cache.key_views), (values[:num_pages], int8_cache.value_views)):
            _fill_pages(pages, views, rng)


def _fill_pages(pages: NDArray[np.generic], views: _Views, rng: np.random.Generator) -> None:
    part = pages[:_FILL_PAGES]
    if pages.dtype == np.int8:
        numbers, scales = views(part)
        numbers[:] = rng.integers(-127, 128, numbers.shape, dtype=np.int8)
        scales[:] = 2.0 / 127
    else:
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    for start in range(_FILL_PAGES, len(pages), _FILL_PAGES):
        rest = pages[start : start + _FILL_PAGES]
        rest[:] = part[: len(rest)]


def measure(
    backend: LocalBackend,
    questions: Sequence[Question],
    rounds: int,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[Measurement]:
    """Measure every question once per round, so that a drifting machine slows all alike. Decode contexts are random."""
    rng = np.random.default_rng(0)
    fill(backend.engine.cache, max(question.num_pages for question in questions), rng)
    run(backend, _WARM_UP, rng)  # touches every page of the weights once
    found = [Measurement(question) for question in questions]
    for number in range(rounds):
        for index, measurement in enumerate(found):
            if progress is not None:
                progress("measuring", number * len(found) + index, rounds * len(found))
            question = measurement.question
            rate = run(backend, question, rng).prefill if question.is_prefill else run_filled(backend, question, rng)
            measurement.rounds.append(rate)
    if progress is not None:
        progress("measuring", rounds * len(found), rounds * len(found))
    return found


def conversations(lengths: Sequence[int], batches: Sequence[int] = (1,)) -> list[Question]:
    """Prompts and the tokens after them: every length alone, and every further batch size at the shortest."""
    return decodes(sorted(set(lengths)), sorted(set(batches)))


def measure_any(
    backend: Backend,
    questions: Sequence[Question],
    rounds: int,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[Rates]:
    """Measure a backend of any kind from outside: medians over the rounds, every prompt computed."""
    rng = np.random.default_rng(0)
    run(backend, _WARM_UP, rng)
    found: list[list[Rates]] = [[] for _ in questions]
    for number in range(rounds):
        for index, question in enumerate(questions):
            if progress is not None:
                progress("measuring", number * len(found) + index, rounds * len(found))
            found[index].append(run(backend, question, rng))
    return [Rates(*(statistics.median(values) for values in zip(*map(astuple, one), strict=True))) for one in found]


def bytes_per_step(backend: LocalBackend, question: Question) -> float:
    """Bytes of weights and KV cache that one decode step has to read."""
    weights, config = backend.model.weights, backend.model.config
    # From an embedding that is not also the head, a step reads one row per sequence.
    read = weights.language_nbytes - (0 if weights.lm_head is weights.embed_tokens else weights.embed_tokens.nbytes)
    context = question.context + question.new / 2
    cache = context / PAGE_SIZE * page_nbytes(config, backend.engine.cache.kv_dtype) * question.batch
    return float(read + cache)


def operations_per_token(backend: LocalBackend) -> float:
    """Multiplications and additions of the layers' matrices for one token (attention and head not counted)."""
    config = backend.model.config
    return 2.0 * config.num_hidden_layers * sum(rows * cols for rows, cols in matrix_shapes(config).values())


def read_bandwidth(repeat: int = 5) -> float:
    """Bytes per second when summing a large array with one thread per core; the best of `repeat` runs.

    A yardstick, not a limit: a program may beat NumPy's sum.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    array = np.ones(_BANDWIDTH_BYTES // 8, np.float64)

    def parts() -> Iterator[NDArray[np.float64]]:
        return iter(np.array_split(array, threads))

    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            list(pool.map(np.sum, parts()))
            times.append(time.perf_counter() - start)
    return array.nbytes / min(times)


def cached_product_peak(kernels: Kernels, repeat: int = 20) -> float:
    """Operations per second of our own int8 or int4 product, whichever is faster, with everything in the caches.

    What the kernels reach when memory costs nothing; the best of `repeat` runs. A yardstick for prefill that needs no
    compiler. The instruction set's own peak is higher (benchmarks/peak.cpp measures it).
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_PEAK_ROWS, _PEAK_SIZE), dtype=np.float32)
    times = []
    for name in ("int8", "int4"):
        weight = random_packed(name, _PEAK_SIZE, _PEAK_SIZE, rng, 0.02)
        kernels.linear(x, weight)
        for _ in range(repeat):
            start = time.perf_counter()
            kernels.linear(x, weight)
            times.append(time.perf_counter() - start)
    return 2.0 * _PEAK_ROWS * _PEAK_SIZE * _PEAK_SIZE / min(times)
