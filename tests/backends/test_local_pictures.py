"""Pictures through the local backend: what it says it can do, its option, its counters, and its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import tiny_vision
from glm4.backends.base import Capability
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.backends.table import BACKENDS
from glm4.engine.protocol import GenerationRequest
from glm4.errors import InvalidRequestError
from glm4.prompt import MediaSpan, Prompt
from glm4.sampling_params import SamplingParams

ROWS = tiny_vision.VISION.num_rows
NBYTES = 4 * ROWS * tiny_vision.CONFIG.hidden_size


def backend(**options: Any) -> LocalBackend:
    made = LocalOptions(dtype="fp32", max_model_len=64, enable_prefix_caching=False, **options)
    return LocalBackend.random(tiny_vision.CONFIG, made)


def question(name: str, seed: int = 0) -> GenerationRequest:
    span = MediaSpan(2, ROWS, "image", f"picture {seed}")
    prompt = Prompt([1, 2, *[3] * ROWS, 4], (span,), {span.digest: tiny_vision.pixels(seed)})
    return GenerationRequest(name, prompt, SamplingParams(temperature=0, max_tokens=3))


def tokens(backend: LocalBackend, request: GenerationRequest) -> list[int]:
    backend.add_request(request)
    found: list[int] = []
    while backend.has_unfinished_requests():
        for output in backend.step():
            assert output.error is None
            found += output.token_ids
    return found


def test_a_model_that_sees_says_so() -> None:
    sees = backend()
    assert sees.info.capabilities == BACKENDS["local"].capabilities
    reads = LocalBackend.random(replace(tiny_vision.CONFIG, vision=None), LocalOptions(dtype="fp32", max_model_len=64))
    assert reads.info.capabilities == BACKENDS["local"].capabilities - {Capability.MEDIA}
    for one in (sees, reads):
        one.close()


@pytest.mark.parametrize(("memory", "encoded", "hits"), [(2 * NBYTES, 2, 2), (NBYTES, 3, 1), (NBYTES - 1, 4, 0)])
def test_the_option_bounds_what_is_kept(memory: int, encoded: int, hits: int) -> None:
    made = backend(picture_cache_memory=memory)
    first, again, other, last = (tokens(made, question(str(i), seed)) for i, seed in enumerate((0, 0, 1, 0)))
    assert first == again == last != other
    stats = made.stats()
    assert (stats.pictures_encoded, stats.picture_cache_hits, stats.encoding) == (encoded, hits, None)
    made.close()


def test_the_option_is_checked() -> None:
    with pytest.raises(InvalidRequestError, match="picture_cache_memory must be at least 0, not -1") as caught:
        LocalOptions(picture_cache_memory=-1)
    assert caught.value.param == "picture_cache_memory"
    assert LocalOptions().picture_cache_memory == 256 << 20


def test_closing_in_the_middle_of_a_picture() -> None:
    made = backend(max_num_batched_tokens=1)
    made.add_request(question("r"))
    made.step()
    progress = made.stats().encoding
    assert progress is not None
    assert 0 < progress < 1
    made.close()
    assert not made.has_unfinished_requests()
