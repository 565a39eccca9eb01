"""Rows that stand for pictures: which pages they share, what is guessed beside them, and where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_engine import CONFIG, engine, prompt

from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.engine.sequence import Sequence, prompt_positions
from glm4.engine.speculation import MAX_DRAFT, PromptLookup
from glm4.errors import InvalidRequestError
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.precision import PRECISIONS
from glm4.prompt import MediaSpan, Prompt
from glm4.sampling_params import SamplingParams

PLACEHOLDER = 7


def add(made: Engine, request: GenerationRequest) -> None:
    """Queue a request whose pictures have any number of rows: placeholders' embeddings, as if a tower had made them."""
    sequence = Sequence(request, np.empty(0, np.int64), made.max_model_len)
    rows = made.model.kernels.embedding(made.model.weights.embed_tokens, np.full(100, PLACEHOLDER, np.int32))
    sequence.picture_rows = {span.digest: rows for span in request.prompt.spans}
    made._sequences[request.request_id] = sequence
    made.scheduler.add(sequence)


def ask(name: str, wanted: Prompt, **options: object) -> GenerationRequest:
    return GenerationRequest(name, wanted, SamplingParams(**({"temperature": 0, "max_tokens": 12} | options)))  # type: ignore[arg-type]


def picture(start: int, length: int, digest: str = "a", *, one_position: bool = True) -> MediaSpan:
    """A picture as GLM-4V has it: begin, patches that share a position, end."""
    offsets = (0, *[1] * (length - 2), 2) if one_position and length > 2 else None
    return MediaSpan(start, length, "image", digest, offsets)


@st.composite
def prompts(draw: st.DrawFn, least: int = 1) -> Prompt:
    """Ids of a small vocabulary, the placeholder among them outside of spans as well."""
    ids: list[int] = []
    spans: list[MediaSpan] = []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 70)), min_size=least, max_size=3)):
        ids += draw(st.lists(st.integers(5, 8), min_size=gap, max_size=gap))
        spans.append(picture(len(ids), length, draw(st.sampled_from("ab")), one_position=draw(st.booleans())))
        ids += [PLACEHOLDER] * length
    return Prompt([*ids, *draw(st.lists(st.integers(5, 8), min_size=1, max_size=40))], tuple(spans))


# The prefix cache


def pages_beside_each_other(first: Prompt, second: Prompt) -> tuple[list[int], list[int]]:
    """Full pages of two prompts that run at the same time in one engine, both computed to the end."""
    made = engine(pages=32, max_num_seqs=2)
    for name, one in (("first", first), ("second", second)):
        add(made, ask(name, one, max_tokens=100))
    made.step()
    while not all(s.num_new_tokens for s in made.scheduler.running):
        made.step()
    pages = {s.request_id: s.pages[: s.num_prompt // PAGE_SIZE] for s in made.scheduler.running}
    return pages["first"], pages["second"]


def found_afterwards(first: Prompt, second: Prompt) -> int:
    """Pages of the first prompt, which has run to its end, that the second one finds."""
    made = engine(pages=32)
    add(made, ask("first", first, max_tokens=1))
    made.step()
    add(made, ask("second", second, max_tokens=1))
    (output,) = made.step()
    assert output.num_cached_tokens % PAGE_SIZE == 0
    return output.num_cached_tokens // PAGE_SIZE


@settings(max_examples=40, deadline=None)
@given(prompts())
def test_equal_ids_and_digests_share_as_text_does(wanted: Prompt) -> None:
    one, other = pages_beside_each_other(wanted, wanted)
    assert one == other
    found = found_afterwards(wanted, replace(wanted, ids=list(wanted.ids)))
    assert found == found_afterwards(Prompt(wanted.ids), Prompt(wanted.ids)) == (len(wanted) - 1) // PAGE_SIZE


@settings(max_examples=60, deadline=None)
@given(prompts(), st.data())
def test_from_another_picture_on_nothing_is_shared(wanted: Prompt, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(wanted.spans) - 1))
    was = wanted.spans[at]
    change = data.draw(st.sampled_from([{"digest": "other"}, {"kind": "audio"}, {"offsets": (0,) * was.length}]))
    spans = list(wanted.spans)
    spans[at] = replace(was, **change)  # type: ignore[arg-type]
    if spans[at] == was:
        return
    changed = Prompt(wanted.ids, tuple(spans))
    before = was.start // PAGE_SIZE
    one, other = pages_beside_each_other(wanted, changed)
    assert one[:before] == other[:before]
    assert not set(one[before:]) & set(other[before:])
    assert found_afterwards(wanted, changed) == min(before, (len(wanted) - 1) // PAGE_SIZE)


@settings(max_examples=30, deadline=None)
@given(prompts())
def test_a_picture_shares_nothing_with_text_of_the_same_ids(wanted: Prompt) -> None:
    before = min(wanted.spans[0].start // PAGE_SIZE, (len(wanted) - 1) // PAGE_SIZE)
    assert found_afterwards(wanted, Prompt(wanted.ids)) == before
    assert found_afterwards(Prompt(wanted.ids), wanted) == before


def test_text_has_the_keys_it_always_had() -> None:
    made = engine(pages=8)
    ids = prompt(1, 70)
    add(made, ask("a", Prompt(ids), max_tokens=1))
    made.step()
    (root,) = made.prefix_cache._roots.values()
    (first,) = root.children.values()
    assert first.key == tuple(ids[:PAGE_SIZE])
    assert next(iter(first.children)) == tuple(ids[PAGE_SIZE : 2 * PAGE_SIZE])


# Speculation


@settings(max_examples=300, deadline=None)
@given(prompts(), st.integers(1, 20))
def test_guesses_are_drawn_from_text_alone(wanted: Prompt, step: int) -> None:
    ids = list(wanted.ids)
    text = [not any(span.start <= row < span.end for span in wanted.spans) for row in range(len(ids))]

    def usable(rows: range) -> bool:
        return all(text[row] for row in rows)

    lookup = PromptLookup(wanted.spans)
    for end in (*range(step, len(ids), step), len(ids)):  # the ids come in pieces
        draft = lookup.propose(ids[:end], MAX_DRAFT, 0.0)
    # The last two ids are text, occur before as text, and text follows: only then is there a guess.
    known = [
        end
        for end in range(2, len(ids))
        if ids[end - 2 : end] == ids[-2:] and usable(range(end - 2, end)) and usable(range(len(ids) - 2, len(ids)))
    ]
    if draft:
        sources = [end for end in known if ids[end : end + len(draft)] == draft]
        assert any(usable(range(end, end + len(draft))) for end in sources)
    if len({text[end] for end in known}) < 2:
        assert bool(draft) == any(text[end] for end in known)


def test_a_match_reaches_neither_into_a_picture_nor_across() -> None:
    span = picture(4, 3)
    repeated = [1, 2, 3, 4, 7, 7, 7, 5, 6, 1, 2, 3, 4]
    assert PromptLookup().propose(repeated, 5, 0.0) == [7, 7, 7, 5, 6]
    assert PromptLookup([span]).propose(repeated, 5, 0.0) == []
    # After a picture: what stood before it is no context of what comes behind.
    behind = [1, 2, 7, 7, 7, 3, 9, 9, 1, 2, 7, 7, 7, 3]
    assert PromptLookup().propose(behind, 2, 0.0) == [9, 9]
    assert PromptLookup([picture(2, 3), picture(10, 3)]).propose(behind, 2, 0.0) == []
    # A guess ends where a picture begins.
    assert PromptLookup([picture(6, 3)]).propose([1, 2, 3, 4, 5, 6, 7, 7, 7, 1, 2, 3], 7, 0.0) == [4, 5, 6]


# Positions


def expected_positions(wanted: Prompt, length: int) -> list[int]:
    """Row by row: one more than the row before, but inside a span what the span says."""
    found: list[int] = []
    for row in range(length):
        span = next((s for s in wanted.spans if s.start <= row < s.end), None)
        following = found[-1] + 1 if found else 0
        if span is None or span.offsets is None or row == span.start:
            found.append(following)
        else:
            found.append(found[span.start] + span.offsets[row - span.start])
    return found


@settings(max_examples=200, deadline=None)
@given(prompts())
def test_positions_of_a_prompt(wanted: Prompt) -> None:
    found = prompt_positions(wanted)
    if found is None:
        assert all(span.offsets is None for span in wanted.spans)
        found = np.arange(len(wanted), dtype=np.int32)
    assert found.dtype == np.int32
    assert found.tolist() == expected_positions(wanted, len(wanted))


def test_the_positions_of_glm_4v() -> None:
    """T text ids become T + 1599 rows; the position after them is the number of rows less 1599."""
    wanted = Prompt([1] * (5 + 1602 + 9), (picture(5, 1602),))
    found = prompt_positions(wanted)
    assert found is not None
    assert found[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert found[5 + 1600 : 5 + 1605].tolist() == [6, 7, 8, 9, 10]
    assert found[-1] + 1 == len(wanted) - 1599


@pytest.mark.parametrize(
    "spans",
    [
        [MediaSpan(3, 0, "image", "a")],
        [MediaSpan(-1, 2, "image", "a")],
        [MediaSpan(8, 3, "image", "a")],
        [MediaSpan(4, 2, "image", "a"), MediaSpan(5, 2, "image", "a")],
        [MediaSpan(4, 2, "image", "a"), MediaSpan(1, 2, "image", "a")],
        [MediaSpan(1, 3, "image", "a", (0, 1))],
        [MediaSpan(1, 2, "image", "a", (1, 2))],
        [MediaSpan(1, 3, "image", "a", (0, 2, 3))],
        [MediaSpan(1, 3, "image", "a", (0, 1, 0))],
    ],
    ids=str,
)
def test_malformed_spans_are_refused(spans: list[MediaSpan]) -> None:
    with pytest.raises(InvalidRequestError, match="span"):
        Prompt([1] * 10, tuple(spans))


MODEL = random_model(CONFIG, PRECISIONS["fp32"], get_kernels("reference"))
# Pictures across page borders, one of them twice, text that repeats itself around them.
TALK = prompt(5, 20)
SPANS = (picture(20, 45), picture(85, 20, "b"), picture(105, 10))
WANTED = Prompt([*TALK, *[PLACEHOLDER] * 45, *TALK, *[PLACEHOLDER] * 30, *TALK[:9]], SPANS)
STEPS = 14
OPTIONS = {"max_tokens": STEPS, "logprobs": 20}


def whole_forward(ids: list[int], positions: list[int]) -> NDArray[np.float32]:
    """Log-probabilities behind the last of these ids: one pass over all of them, in a cache of its own."""
    pages = list(range(pages_for(len(ids))))
    batch = ForwardBatch.build([pages], [0], [len(ids)], positions=[np.array(positions, np.int32)])
    hidden = MODEL.forward(np.array(ids, np.int32), batch, KVCache(CONFIG, len(pages), "fp32"))
    return MODEL.kernels.log_softmax(MODEL.logits(hidden[-1:]))[0]


def oracle(wanted: Prompt, steps: int = STEPS) -> list[tuple[int, NDArray[np.float32]]]:
    """Greedy tokens, each with the log-probabilities it was chosen by; everything is computed again for each."""
    ids = list(wanted.ids)
    found = []
    for _ in range(steps):
        scores = whole_forward(ids, expected_positions(wanted, len(ids)))
        found.append((int(scores.argmax()), scores))
        ids.append(found[-1][0])
    return found


@pytest.fixture(scope="module")
def answer() -> list[tuple[int, NDArray[np.float32]]]:
    return oracle(WANTED)


def check(outputs: list[GenerationOutput], answer: list[tuple[int, NDArray[np.float32]]]) -> None:
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == [token for token, _ in answer]
    for entry, (_, scores) in zip([entry for output in outputs for entry in output.logprobs], answer, strict=True):
        found = dict(entry.top)
        np.testing.assert_allclose(list(found.values()), scores[list(found)], rtol=0, atol=1e-4)


def run(made: Engine) -> dict[str, list[GenerationOutput]]:
    outputs: dict[str, list[GenerationOutput]] = {}
    while made.has_unfinished_requests():
        for output in made.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def reference(pages: int = 32, caching: bool = True, **limits: Any) -> Engine:
    config = SchedulerConfig(**({"max_speculative_rows": 0} | limits))
    limit = min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    return Engine(MODEL, KVCache(CONFIG, pages, "fp32"), limit, config, enable_prefix_caching=caching)


def test_positions_matter(answer: list[tuple[int, NDArray[np.float32]]]) -> None:
    """What the other tests compare with differs from what counting would give."""
    counted = whole_forward(list(WANTED.ids), list(range(len(WANTED))))
    assert np.abs(counted - answer[0][1]).max() > 0.1


@pytest.mark.parametrize("chunk", [7, 33, 512])
def test_chunked_prefill_and_decoding_behind_pictures(
    chunk: int, answer: list[tuple[int, NDArray[np.float32]]]
) -> None:
    made = reference(max_num_batched_tokens=chunk, max_prefill_beside_decode=chunk)
    add(made, ask("a", WANTED, **OPTIONS))
    check(run(made)["a"], answer)


def test_pages_from_the_cache(answer: list[tuple[int, NDArray[np.float32]]]) -> None:
    """Reuse ends inside the first picture, behind the last one, and once there is text behind that was generated."""
    made = reference()
    head = Prompt(WANTED.ids[:70], SPANS[:1])
    longer = Prompt([*WANTED.ids, *(token for token, _ in answer), *TALK], SPANS)
    for name, wanted, cached in (("head", head, 0), ("all", WANTED, 64), ("again", WANTED, 96), ("more", longer, 128)):
        add(made, ask(name, wanted, **OPTIONS))
        outputs = run(made)[name]
        assert outputs[0].num_cached_tokens == cached
        check(outputs, answer if wanted is WANTED else oracle(wanted))


def test_preemption(answer: list[tuple[int, NDArray[np.float32]]]) -> None:
    made = reference(pages=8, caching=False, max_num_seqs=4, max_num_batched_tokens=40)
    others = [ask(f"r{i}", Prompt(prompt(i, 30)), max_tokens=70) for i in range(2)]
    for item in (*others, ask("a", WANTED, **OPTIONS)):
        add(made, item)
    check(run(made)["a"], answer)
    assert made.scheduler.num_preemptions > 0


def test_guesses_stand_behind_the_last_position() -> None:
    biased = OPTIONS | {"logit_bias": dict.fromkeys(TALK[9:14], 12.0), "max_tokens": 40}
    found = {}
    for rows in (0, 8):
        made = reference(max_speculative_rows=rows, guess_cost=0.0)
        add(made, ask("a", WANTED, **biased))
        outputs = run(made)["a"]
        found[rows] = [token for output in outputs for token in output.token_ids]
        accepted = made.stats().num_accepted_tokens
        assert (accepted > 0) == (rows > 0)
        ids = [*WANTED.ids, *found[rows]]
        for number, entry in enumerate(entry for output in outputs for entry in output.logprobs):
            scores = whole_forward(ids[: len(WANTED) + number], expected_positions(WANTED, len(WANTED) + number))
            np.testing.assert_allclose([lp for _, lp in entry.top], scores[[i for i, _ in entry.top]], atol=1e-4)
    assert found[0] == found[8]
