"""How long it takes here until an answer about a picture begins, without the model: operations over measured speed.

The kernels are timed for a few hundredths of a second on matrices that fit in caches, so a machine that is busy, or
whose memory is slow, takes longer than this says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glm4.kernels.base import Kernels
from glm4.kernels.formats import random_packed
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import PAGE_SIZE, cache_arrays
from glm4.model.precision import Precision
from glm4.model.vision import text_operations, tower_kv_dtype, tower_operations

_ROWS, _SIZE = 512, 1024
_KEYS, _HEADS = 1024, 8
_REPEAT = 4
_QUESTION_ROWS = 32  # a short question and the template around it


@dataclass(frozen=True)
class FirstToken:
    """Seconds until the first token of an answer about a picture.

    Attributes:
        tower: pixels to rows of the text model; a second question about the picture does not need it.
        prompt: these rows and a short question through the text model.
    """

    tower: float
    prompt: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.tower + self.prompt


def time_to_first_token(config: ModelConfig, precision: Precision, kernels: Kernels) -> FirstToken | None:
    """An estimate for this machine; None for a model that does not see."""
    vision = config.vision
    if vision is None:
        return None
    product = _product_seconds(kernels, precision.linear)
    attention = _attention_seconds(kernels, vision.head_dim, tower_kv_dtype(precision.linear, vision.head_dim))
    matrices, scores = tower_operations(config)
    prompt = (vision.num_rows + _QUESTION_ROWS) * text_operations(config)
    return FirstToken(matrices * product + scores * attention, prompt * product)


def _product_seconds(kernels: Kernels, format: str) -> float:
    """Seconds per multiplication of a matrix product in a weight format."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_ROWS, _SIZE), dtype=np.float32)
    weight = random_packed(format, _SIZE, _SIZE, rng, _SIZE**-0.5)
    return _best(lambda: kernels.linear(x, weight)) / (_ROWS * _SIZE * _SIZE)


def _attention_seconds(kernels: Kernels, head_dim: int, kv_dtype: str) -> float:
    """The same of attention in which every row sees every row."""
    pages = _KEYS // PAGE_SIZE
    keys, values = cache_arrays(pages, _HEADS, head_dim, kv_dtype)
    rows = np.random.default_rng(0).standard_normal((_KEYS, _HEADS, head_dim), dtype=np.float32)
    kernels.store_kv(rows, rows, keys, values, np.arange(_KEYS))
    table, lengths = np.arange(pages, dtype=np.int32)[None, :], np.array([_KEYS], np.int32)
    starts = np.array([0, _KEYS], np.int32)

    def attend() -> None:
        kernels.paged_attention(rows, keys, values, table, starts, lengths, head_dim**-0.5, causal=False)

    return _best(attend) / (2 * _KEYS * _KEYS * _HEADS * head_dim)


def _best(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEAT):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
