"""A tiny random model that sees, engines that run it, and requests with pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiny_vision
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.precision import PRECISIONS
from glm4.prompt import MediaSpan, Prompt
from glm4.sampling_params import SamplingParams

SIZE = 224
CONFIG = replace(tiny_vision.CONFIG, vision=replace(tiny_vision.VISION, image_size=SIZE))
VISION = CONFIG.vision
assert VISION is not None
NUM_ROWS = VISION.num_rows  # over two pages
ROW_NBYTES = NUM_ROWS * CONFIG.hidden_size * 4
MODELS = {dtype: random_model(CONFIG, PRECISIONS[dtype], get_kernels(), seed=2) for dtype in ("fp32", "int8")}
PLACEHOLDER = 7
STEPS = 6
# A tower's piece beside other requests is as small as it can be, so that a picture takes many steps.
SLOW: dict[str, Any] = {"max_prefill_beside_decode": 1, "max_num_batched_tokens": 24, "max_speculative_rows": 0}

Answer = list[tuple[int, object]]


def pixels(name: str) -> NDArray[np.uint8]:
    return np.random.default_rng(ord(name)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


PIXELS = {name: pixels(name) for name in "abcd"}


def words(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 100, length).tolist()


def prompt(*parts: list[int] | str) -> Prompt:
    """Ids, and pictures by name."""
    ids: list[int] = []
    spans: list[MediaSpan] = []
    for part in parts:
        if isinstance(part, str):
            offsets = (0, *[1] * (NUM_ROWS - 2), 2)
            spans.append(MediaSpan(len(ids), NUM_ROWS, "image", part, offsets))
            ids += [PLACEHOLDER] * NUM_ROWS
        else:
            ids += part
    return Prompt(ids, tuple(spans), {span.digest: PIXELS[span.digest] for span in spans})


def ask(name: str, wanted: Prompt, **options: Any) -> GenerationRequest:
    request = {key: options.pop(key) for key in ("cache_salt", "pooling") if key in options}
    params = SamplingParams(**({"temperature": 0, "max_tokens": STEPS, "logprobs": 5} | options))
    return GenerationRequest(name, wanted, params, **request)


def engine(
    dtype: str = "fp32", pages: int = 64, kept: int = 16 * ROW_NBYTES, caching: bool = True, **limits: Any
) -> Engine:
    config = SchedulerConfig(**({"max_speculative_rows": 0} | limits))
    length = min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    return Engine(
        MODELS[dtype],
        KVCache(CONFIG, pages, "fp32"),
        length,
        config,
        enable_prefix_caching=caching,
        picture_cache_nbytes=kept,
    )


def run(made: Engine, *requests: GenerationRequest) -> dict[str, Answer]:
    for request in requests:
        made.add_request(request)
    found: dict[str, Answer] = {}
    while made.has_unfinished_requests():
        take(found, made.step())
    assert made.prefix_cache.num_used_pages == 0
    stats = made.stats()
    assert (stats.num_running, stats.num_waiting, stats.encoding) == (0, 0, None)
    return found


def take(found: dict[str, Answer], outputs: list[GenerationOutput]) -> None:
    for output in outputs:
        assert output.error is None, output.error
        found.setdefault(output.request_id, []).extend(zip(output.token_ids, output.logprobs, strict=True))


def alone(request: GenerationRequest, dtype: str = "fp32") -> Answer:
    return run(engine(dtype, caching=False, kept=0), request)[request.request_id]


LONG = words(5, 20)
REQUESTS = {
    "text": ask("text", Prompt(words(1, 40)), max_tokens=70),
    "first": ask("first", prompt(words(2, 5), "a", words(3, 9)), max_tokens=40),
    "again": ask("again", prompt(words(2, 5), "a", words(4, 30))),
    "other": ask("other", prompt(words(2, 5), "b", words(3, 9))),
    "both": ask("both", prompt("b", words(6, 3), "a", words(7, 4))),
    "twice": ask("twice", prompt(LONG, "c", LONG, "c", LONG), temperature=1.0, seed=4),
    "ends": ask("ends", prompt(words(8, 33), "d")),
}
