"""From a message with a picture to shared pages, through the whole of `LLM`: a dialect that has a place for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm4 import LLM, AudioPart, ImagePart, Message, SamplingParams, TextPart
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.base import Tools
from glm4.chat.dialects.glm4 import GLM4Dialect
from glm4.chat.template.template import ChatTemplate
from glm4.errors import InvalidRequestError
from glm4.model.kv_cache import PAGE_SIZE
from glm4.prompt import MediaSpan, Prompt
from glm4.requests.assistant_prefill import AssistantPrefill
from glm4.tokenizer import Tokenizer
from tiny import special_id, write_folder

PATCHES = 70
BEGIN, PATCH, END = map(special_id, ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>"))
TEMPLATE = ChatTemplate(
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% for part in m.content %}{% if part.type == 'image' %}"
    "<|begin_of_image|><|endoftext|><|end_of_image|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


class PictureDialect(GLM4Dialect):
    """GLM-4V's way with pictures, of `PATCHES` rows each; what the rows hold is not computed."""

    media = frozenset({"image"})

    def prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        prepared, offered = super().prepare(messages, tools)
        for entry, message in zip(prepared, messages, strict=True):
            entry["content"] = [{"type": part.kind, "text": getattr(part, "text", "")} for part in message.content]
        return prepared, offered

    def render(
        self,
        request: ChatRequest,
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        most: int | None = None,
    ) -> Prompt:
        images = [part for m in request.messages for part in m.content if isinstance(part, ImagePart)]
        ids: list[int] = []
        spans: list[MediaSpan] = []
        for token in super().render(request, tokenizer=tokenizer, template=template, most=most).ids:
            if token == PATCH:  # only the template can have written it
                spans.append(MediaSpan(len(ids), PATCHES, "image", str(images[len(spans)].digest), (0,) * PATCHES))
            ids += [token] * (PATCHES if token == PATCH else 1)
        return Prompt(ids, tuple(spans))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path = write_folder(tmp_path_factory.mktemp("model"))
    with LLM(str(folder), dtype="fp32", max_model_len=512, max_num_seqs=4) as text:
        processor = replace(text.processor, dialect=PictureDialect(), template=TEMPLATE)
        yield LLM.from_backend(text.backend, processor)


def question(data: bytes, text: str = "What is this? <|endoftext|>") -> list[Message]:
    return [Message("user", [TextPart("Look: "), ImagePart(data), TextPart(text)])]


def test_the_prompt_says_which_rows_are_the_picture(llm: LLM) -> None:
    prepared = llm.prepare_chat(question(b"one"), PARAMS)
    (span,) = prepared.prompt.spans
    ids = list(prepared.prompt_ids)
    assert ids[span.start - 1 : span.end + 1] == [BEGIN, *[PATCH] * PATCHES, END]
    assert ids.count(PATCH) == PATCHES  # what the user spelled is text
    assert span.digest == ImagePart(b"one").digest
    (request,) = [prepared.sample("r", frozenset(), 0)]
    assert request.prompt is prepared.prompt
    head = AssistantPrefill("<|assistant|>\n", "Ja", (1, 2))
    assert head.after(prepared.prompt) == Prompt([*ids, 1, 2], (span,))


def test_pages_are_shared_between_equal_pictures_only(llm: LLM) -> None:
    (first,) = llm.chat(question(b"a cat"), PARAMS)
    (span,) = llm.prepare_chat(question(b"a cat"), PARAMS).prompt.spans
    rows = len(first.prompt_token_ids)
    (same,) = llm.chat(question(b"a cat"), PARAMS)
    (other,) = llm.chat(question(b"a dog"), PARAMS)
    assert first.prompt_token_ids == same.prompt_token_ids == other.prompt_token_ids
    assert [one.metrics.num_cached_tokens for one in (first, same, other)] == [
        0,
        (rows - 1) // PAGE_SIZE * PAGE_SIZE,
        span.start // PAGE_SIZE * PAGE_SIZE,
    ]
    assert first.outputs[0].token_ids == same.outputs[0].token_ids


def test_raw_prompts_carry_spans(llm: LLM) -> None:
    prompt = llm.prepare_chat(question(b"raw"), PARAMS).prompt
    assert llm.prepare_prompt(prompt, PARAMS).prompt is prompt
    (whole,) = llm.chat(question(b"raw"), PARAMS)
    (single,) = llm.generate(prompt, PARAMS)
    prompts: list[Prompt | list[int]] = [prompt, [65, 66]]
    two = llm.generate(prompts, PARAMS)
    for output in (single, two[0]):
        assert output.prompt is None
        assert output.outputs[0].token_ids == whole.outputs[0].token_ids
        assert output.metrics.num_cached_tokens == (len(prompt) - 1) // PAGE_SIZE * PAGE_SIZE
    counted = Prompt(prompt.ids, tuple(replace(span, digest="x", offsets=None) for span in prompt.spans))
    (other,) = llm.generate(counted, PARAMS.replace(logprobs=1))
    (same,) = llm.generate(prompt, PARAMS.replace(logprobs=1))
    assert [e.logprob for e in other.outputs[0].logprobs or ()] != [e.logprob for e in same.outputs[0].logprobs or ()]


def test_what_it_has_no_place_for_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat([*question(b"x"), Message("user", [AudioPart(b"x")])])
    assert str(caught.value) == (
        "messages[1].content[0]: this model takes text and image; cannot use a content part of type 'audio'"
    )
