"""From a message with a picture to shared pages, through the whole of `LLM` with a tiny GLM-4V."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from glm4 import LLM, AudioPart, ImagePart, Message, SamplingParams, TextPart
from glm4.errors import InvalidRequestError
from glm4.model.kv_cache import PAGE_SIZE
from glm4.multimodal.image import encode_picture
from glm4.prompt import Prompt
from glm4.requests.assistant_prefill import AssistantPrefill
from vision_folder import BEGIN, END, END_OF_TEXT, ROWS, write_vision_folder

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
CAT, DOG, RAW = (encode_picture(np.full((9, 12, 3), shade, np.uint8)) for shade in (40, 120, 200))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_vision_folder(tmp_path_factory.mktemp("model"))
    with LLM(str(folder), dtype="fp32", max_model_len=512, max_num_seqs=4) as llm:
        yield llm


def question(data: bytes, text: str = "What is this? <|endoftext|>") -> list[Message]:
    system = Message("system", "You see pictures, and answer briefly.")
    return [system, Message("user", [TextPart("Look: "), ImagePart(data), TextPart(text)])]


def test_the_prompt_says_which_rows_are_the_picture(llm: LLM) -> None:
    prepared = llm.prepare_chat(question(CAT), PARAMS)
    (span,) = prepared.prompt.spans
    ids = list(prepared.prompt_ids)
    assert ids[span.start : span.end] == [BEGIN, *[END_OF_TEXT] * (ROWS - 2), END]
    assert ids.count(END_OF_TEXT) == ROWS - 2  # what the user spelled is text
    assert span.digest == ImagePart(CAT).digest
    (request,) = [prepared.sample("r", frozenset(), 0)]
    assert request.prompt is prepared.prompt
    head = AssistantPrefill("<|assistant|>\n", "Ja", (1, 2))
    assert head.after(prepared.prompt) == Prompt([*ids, 1, 2], (span,))


def test_pages_are_shared_between_equal_pictures_only(llm: LLM) -> None:
    (first,) = llm.chat(question(CAT), PARAMS)
    (span,) = llm.prepare_chat(question(CAT), PARAMS).prompt.spans
    rows = len(first.prompt_token_ids)
    (same,) = llm.chat(question(CAT), PARAMS)
    (other,) = llm.chat(question(DOG), PARAMS)
    assert first.prompt_token_ids == same.prompt_token_ids == other.prompt_token_ids
    assert [one.metrics.num_cached_tokens for one in (first, same, other)] == [
        0,
        (rows - 1) // PAGE_SIZE * PAGE_SIZE,
        span.start // PAGE_SIZE * PAGE_SIZE,
    ]
    assert first.outputs[0].token_ids == same.outputs[0].token_ids


def test_raw_prompts_carry_spans(llm: LLM) -> None:
    prompt = llm.prepare_chat(question(RAW), PARAMS).prompt
    assert llm.prepare_prompt(prompt, PARAMS).prompt is prompt
    (whole,) = llm.chat(question(RAW), PARAMS)
    (single,) = llm.generate(prompt, PARAMS)
    prompts: list[Prompt | list[int]] = [prompt, [65, 66]]
    two = llm.generate(prompts, PARAMS)
    for output in (single, two[0]):
        assert output.prompt is None
        assert output.outputs[0].token_ids == whole.outputs[0].token_ids
        assert output.metrics.num_cached_tokens == (len(prompt) - 1) // PAGE_SIZE * PAGE_SIZE
    (span,) = prompt.spans
    pixels = {"x": prompt.pixels[span.digest]}
    counted = Prompt(prompt.ids, (replace(span, digest="x", offsets=None),), pixels)
    (other,) = llm.generate(counted, PARAMS.replace(logprobs=1))
    (same,) = llm.generate(prompt, PARAMS.replace(logprobs=1))
    assert [e.logprob for e in other.outputs[0].logprobs or ()] != [e.logprob for e in same.outputs[0].logprobs or ()]


def test_what_it_has_no_place_for_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat([*question(CAT), Message("user", [AudioPart(b"x")])])
    assert str(caught.value) == (
        "messages[2].content[0]: this model takes text and image; cannot use a content part of type 'audio'"
    )
