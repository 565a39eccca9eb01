"""Every sampling option means for each backend what it means for our own engine in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import ADAPTERS, GREEDY, PROMPT, PROMPTS, Answer, Files, Subject, answer, finished, unnamed_ids

from glm4.backends.base import Backend
from glm4.engine.protocol import GenerationRequest
from glm4.logprobs import TokenLogprobs
from glm4.sampling_params import SamplingParams

MARGIN = 1e-3
"""Least distance of the two best log-probabilities: far more than what float32 sums in another order differ by."""
TOLERANCE = 1e-4


def test_greedy_choices_are_not_close(reference: Backend) -> None:
    """Equal ids in what follows are no luck: no choice hangs on rounding."""
    scored = [answer(reference, GREEDY.replace(logprobs=2, max_tokens=64), prompt) for prompt in PROMPTS]
    scored += [
        answer(reference, GREEDY.replace(logprobs=2), prompt, adapter=name) for prompt in PROMPTS for name in ADAPTERS
    ]
    assert min(entry.top[0][1] - entry.top[1][1] for one in scored for entry in one.logprobs) > MARGIN
    assert min(len(set(one.ids)) for one in scored) > 4


def alone(reference: Backend) -> list[list[int]]:
    return [answer(reference, GREEDY, prompt).ids for prompt in PROMPTS]


def test_greedy_ids_are_equal_one_by_one(subject: Subject, reference: Backend) -> None:
    assert [answer(subject.backend, GREEDY, prompt).ids for prompt in PROMPTS] == alone(reference)


def test_greedy_ids_are_equal_in_a_batch(subject: Subject, reference: Backend) -> None:
    requests = [GenerationRequest(str(at), prompt, GREEDY) for at, prompt in enumerate(PROMPTS)]
    answers = finished(subject.backend, *requests)
    assert [answers[request.request_id].ids for request in requests] == alone(reference)


def test_greedy_ids_are_equal_for_late_joiners(subject: Subject, reference: Backend) -> None:
    long = GREEDY.replace(max_tokens=64)
    first = [GenerationRequest(f"first {at}", PROMPTS[at], long) for at in (1, 3)]
    late = [GenerationRequest(f"late {at}", PROMPTS[at], GREEDY) for at in (4, 0, 2)]
    answers = finished(subject.backend, *first, late=late)
    assert {name: one.ids for name, one in answers.items()} == {
        request.request_id: answer(reference, request.params, request.prompt).ids for request in (*first, *late)
    }


# Ends


def stop_at(reference: Backend, least: int) -> tuple[int, int]:
    """An id of the greedy answer, and where it comes for the first time, at `least` or later."""
    ids = answer(reference, GREEDY).ids
    return next((token, at) for at, token in enumerate(ids) if at >= least and token not in ids[:at])


@pytest.mark.parametrize("whose", ["the model's", "the caller's"])
def test_a_stop_id_is_the_last_one(subject: Subject, reference: Backend, whose: str) -> None:
    token, at = stop_at(reference, 4)
    own: dict[str, Any] = {"stop_ids": frozenset({token, 1})} if whose == "the model's" else {}
    params = GREEDY.replace(ignore_eos=not own, stop_token_ids=[] if own else [token, 1])
    stopped = answer(subject.backend, params, **own)
    assert stopped.ids == answer(reference, GREEDY).ids[: at + 1]
    assert stopped.end == ("stop", token)


def test_ignore_eos_runs_on(subject: Subject, reference: Backend) -> None:
    token, _ = stop_at(reference, 4)
    ignoring = answer(subject.backend, GREEDY, stop_ids=frozenset({token}))
    assert ignoring.ids == answer(reference, GREEDY).ids
    assert ignoring.end == ("length", None)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_is_exact(subject: Subject, reference: Backend, limit: int) -> None:
    limited = answer(subject.backend, GREEDY.replace(max_tokens=limit))
    assert limited.ids == answer(reference, GREEDY).ids[:limit]
    assert limited.end == ("length", None)


@pytest.mark.parametrize("whose", ["the model's", "the caller's"])
def test_no_stop_id_comes_before_min_tokens(subject: Subject, reference: Backend, whose: str) -> None:
    token, at = stop_at(reference, 2)
    own: dict[str, Any] = {"stop_ids": frozenset({token})} if whose == "the model's" else {}
    params = GREEDY.replace(ignore_eos=False, min_tokens=at + 3, stop_token_ids=[] if own else [token])
    ids = subject.answer(params, **own).ids
    assert token not in ids[: at + 3]
    assert ids == answer(reference, params, **own).ids


# Log-probabilities


def compare(theirs: TokenLogprobs, ours: TokenLogprobs) -> None:
    assert theirs.token_id == ours.token_id
    assert theirs.logprob == pytest.approx(ours.logprob, abs=TOLERANCE)
    assert [token for token, _ in theirs.top] == [token for token, _ in ours.top]
    assert [value for _, value in theirs.top] == pytest.approx([value for _, value in ours.top], abs=TOLERANCE)
    listed = any(token == ours.token_id for token, _ in ours.top)
    assert theirs.rank == ours.rank or (theirs.rank is None and not listed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_equal(subject: Subject, reference: Backend, temperature: float) -> None:
    """Of whatever was sampled: the reference is led along the same ids by their bias."""
    params = GREEDY.replace(logprobs=3, temperature=temperature, max_tokens=8)
    theirs = subject.answer(params)
    assert len(theirs.logprobs) == len(theirs.ids) == 8
    for at, entry in enumerate(theirs.logprobs):
        prompt = type(PROMPT)([*PROMPT.ids, *theirs.ids[:at]])
        led = params.replace(max_tokens=1, temperature=0.0, logit_bias={theirs.ids[at]: 100.0})
        (ours,) = answer(reference, led, prompt).logprobs
        compare(entry, ours)


def test_the_chosen_one_alone_is_scored_on_request(subject: Subject) -> None:
    for entry in subject.answer(GREEDY.replace(logprobs=0)).logprobs:
        assert entry.top == ()
        assert entry.logprob < 0


def test_prompts_are_scored(subject: Subject, reference: Backend) -> None:
    params = GREEDY.replace(prompt_logprobs=3, max_tokens=2)
    for prompt in (PROMPT, PROMPTS[-1]):
        theirs = subject.answer(params, prompt).prompt_logprobs
        ours = answer(reference, params, prompt).prompt_logprobs
        assert len(theirs) == len(prompt)
        assert theirs[0] is None
        for one, other in zip(theirs[1:], ours[1:], strict=True):
            assert one is not None
            assert other is not None
            compare(one, other)


# Options that change which id comes


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": -0.4},
        {"logit_bias": {100: 4.0, 101: 4.5, 7: 3.0}},
    ],
    ids=lambda options: ", ".join(options),
)
def test_it_changes_greedy_answers_as_in_our_engine(
    subject: Subject, reference: Backend, options: dict[str, Any]
) -> None:
    params = GREEDY.replace(max_tokens=48, **options)
    for prompt in PROMPTS[:3]:
        wanted = answer(reference, params, prompt).ids
        assert subject.answer(params, prompt).ids == wanted
    plain = GREEDY.replace(max_tokens=48)
    assert any(answer(reference, plain, prompt).ids != answer(reference, params, prompt).ids for prompt in PROMPTS[:3])


@pytest.mark.parametrize(
    "options", [{"min_p": 1.0}, {"top_k": 1}, {"top_p": 0.0}], ids=lambda options: next(iter(options))
)
def test_it_leaves_the_best_id_only(subject: Subject, reference: Backend, options: dict[str, Any]) -> None:
    params = GREEDY.replace(temperature=2.0, **options)
    for prompt in PROMPTS[:3]:
        assert subject.answer(params, prompt).ids == answer(reference, GREEDY, prompt).ids


def test_top_k_samples_among_the_best(subject: Subject) -> None:
    params = GREEDY.replace(temperature=5.0, top_k=3, max_tokens=40, logprobs=3)
    drawn = [[token for token, _ in entry.top].index(entry.token_id) for entry in subject.answer(params).logprobs]
    assert set(drawn) == {0, 1, 2}


# Chance

SEEDED = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True, seed=1234)


def seeded(subject: Subject, seed: int = 1234, **request: Any) -> list[int]:
    return subject.answer(SEEDED.replace(seed=seed), **request).ids


def test_a_seed_repeats_itself_and_others_differ(subject: Subject) -> None:
    ids = seeded(subject)
    assert seeded(subject) == ids
    assert seeded(subject, sample_index=1) != ids
    assert seeded(subject, sample_index=1) == seeded(subject, sample_index=1)
    assert seeded(subject, seed=1235) != ids
    for extreme in (-(1 << 63), (1 << 63) - 1, -1, 0):
        assert len(seeded(subject, seed=extreme)) == 24


def test_a_seed_repeats_itself_in_a_batch(subject: Subject) -> None:
    ids = seeded(subject)
    requests = [GenerationRequest(str(at), prompt, GREEDY) for at, prompt in enumerate(PROMPTS)]
    answers = finished(subject.backend, *requests, GenerationRequest("seeded", PROMPT, SEEDED))
    assert answers["seeded"].ids == ids


def test_without_a_seed_answers_differ(subject: Subject) -> None:
    params = GREEDY.replace(temperature=1.0, max_tokens=24)
    assert subject.answer(params).ids != subject.answer(params).ids


@pytest.mark.parametrize("options", [{}, {"top_p": 0.999}, {"logit_bias": {97: 1.0}}], ids=str)
def test_rows_without_a_token_are_never_sampled(subject: Subject, files: Files, options: dict[str, Any]) -> None:
    """A sixth of all rows: one of 200 draws at this temperature would hit them."""
    hot = GREEDY.replace(temperature=5.0, max_tokens=200, **options)
    drawn: Answer = subject.answer(hot)
    assert len(drawn.ids) == 200
    assert not unnamed_ids(files) & set(drawn.ids)
    assert len(set(drawn.ids)) > 60


def test_the_temperature_spreads_answers(subject: Subject) -> None:
    cool, hot = (
        np.mean(
            [
                entry.logprob
                for entry in subject.answer(GREEDY.replace(temperature=t, max_tokens=64, logprobs=0)).logprobs
            ]
        )
        for t in (0.3, 5.0)
    )
    assert hot < cool - 1
