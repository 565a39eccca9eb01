"""A tiny GLM-4V with heads that vLLM's attention on CPUs takes, prompts with pictures for it, answers of a backend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

import vision_folder as vf
from glm4 import SamplingParams
from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationRequest
from glm4.prompt import ImageLayout, Prompt
from tiny import tiny_model
from vision_models import TinyVision

MODEL = TinyVision(
    tiny_model("chatglm", hidden_size=256, head_dim=64, intermediate_size=384, num_hidden_layers=3),
    end_of_text=vf.END_OF_TEXT, begin_of_image=vf.BEGIN, end_of_image=vf.END, image_size=112, hidden_size=64,
)  # fmt: skip
LAYOUT = ImageLayout(MODEL.image_size, MODEL.num_rows, vf.BEGIN, vf.END)
TOLERANCE = 5e-4  # of a log-probability; seen: 1.4e-4 behind a picture, 8e-6 without
PARAMS = SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)
CONTEXT = 512
Answer = tuple[list[int], list[float], int]
"""Ids, their log-probabilities, and how many tokens of the prompt were cached."""


UNNAMED = range(vf.BEGIN + 4, MODEL.text.vocab_size)
"""Ids without a token."""


def prompt(before: int, after: int, picture: int | None = None) -> Prompt:
    """Random bytes, the same ones for equal lengths, and between them a picture of noise, if any."""
    if picture is None:
        first, last = _text(before, after)
        return Prompt([*first, *last])
    shape = (MODEL.image_size, MODEL.image_size, 3)
    pixels = np.random.default_rng(1000 + picture).integers(0, 256, shape, dtype=np.uint8)
    return with_picture(before, after, pixels, f"picture {picture}")


def with_picture(before: int, after: int, pixels: NDArray[np.uint8], digest: str) -> Prompt:
    """Random bytes around this picture."""
    first, last = _text(before, after)
    rows = [vf.BEGIN, *[vf.END_OF_TEXT] * (MODEL.num_rows - 2), vf.END]
    return Prompt([*first, *rows, *last], (LAYOUT.span(before, digest),), {digest: pixels})


def _text(*counts: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, count).tolist() for count in counts]


def answers(backend: Backend, prompts: Mapping[str, Prompt]) -> dict[str, Answer]:
    """All at once, as the engine batches them."""
    found: dict[str, Answer] = {}
    for name, one in prompts.items():
        backend.add_request(GenerationRequest(name, one, PARAMS))
        found[name] = ([], [], 0)
    while backend.has_unfinished_requests():
        for output in backend.step():
            assert output.error is None
            ids, logprobs, cached = found[output.request_id]
            found[output.request_id] = (
                [*ids, *output.token_ids],
                [*logprobs, *(one.logprob for one in output.logprobs)],
                cached + output.num_cached_tokens,
            )
    return found


def assert_equal(found: Answer, expected: Answer) -> None:
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=TOLERANCE)
