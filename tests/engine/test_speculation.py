"""Guessed tokens change how many steps an answer takes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import alone, engine, kv_dtype, prompt, request, run

from glm4.engine import speculation
from glm4.engine.speculation import MAX_DRAFT, PromptLookup, RowCost

__all__ = ["kv_dtype"]  # a fixture


def steps_of(made: object, *items: object) -> tuple[dict[str, list[int]], int]:
    for item in items:
        made.add_request(item)  # type: ignore[attr-defined]
    answers: dict[str, list[int]] = {}
    steps = 0
    while made.has_unfinished_requests():  # type: ignore[attr-defined]
        steps += 1
        for output in made.step():  # type: ignore[attr-defined]
            answers.setdefault(output.request_id, []).extend(output.token_ids)
    return answers, steps


COST = 0.25


def propose(ids: list[int], limit: int, cost: float = COST) -> list[int]:
    return PromptLookup().propose(ids, limit, cost)


def test_what_followed_the_longest_match_is_proposed() -> None:
    assert propose([3, 4, 5, 6, 3, 4], 1) == [5]
    assert propose([1, 2, 3, 4, 9, 9, 3, 4, 5, 5, 1, 2, 3, 4], 1) == [9]  # four before two
    assert propose([1, 2, 3, 4, 5], 2) == []
    assert propose([1], 2) == propose([], 2) == []
    # Four ids occur twice; what came before them decides.
    head, four = [7, 8, 9], [1, 2, 3, 4]
    assert propose([*head, *four, 50, 51, 9, 9, *four, 60, 61, *head, *four], 1) == [50]
    # Equally long: the latest.
    assert propose([7, 8, 1, 7, 8, 2, 7, 8], 1) == [2]


def test_a_match_grows_with_the_text() -> None:
    """Ids handed over one by one give the drafts that all at once give."""
    text = prompt(3, 40) + prompt(4, 30) + prompt(3, 40)
    lookup = PromptLookup()
    for end in range(1, len(text) + 1):
        assert lookup.propose(text[:end], MAX_DRAFT, COST) == propose(text[:end], MAX_DRAFT)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_draft_is_what_followed_an_earlier_occurrence(ids: list[int]) -> None:
    draft = propose(ids, MAX_DRAFT, 0.0)
    known = [end for end in range(2, len(ids)) if ids[end - 2 : end] == ids[-2:]]
    assert bool(draft) == bool(known)
    if draft:
        longest = max(next((n for n in range(end) if ids[end - 1 - n] != ids[-1 - n]), end) for end in known)
        starts = [end for end in known if ids[max(0, end - min(longest, 4)) : end] == ids[-min(longest, 4) :]]
        assert draft in [ids[end : end + MAX_DRAFT] for end in starts]


def test_of_a_very_long_prompt_the_end_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "_MOST_INDEXED", 10)
    same = prompt(1, 4)
    assert propose([*same, *range(200, 220), *same], MAX_DRAFT) == []
    assert propose([*range(200, 220), *same, 8, 9, *same], 2) == [8, 9]


def test_longer_matches_are_trusted_further() -> None:
    def drafted(match: int) -> int:
        same = prompt(1, match)
        return len(propose([*same, *range(200, 220), *same], MAX_DRAFT))

    lengths = [drafted(match) for match in (2, 4, 8, 20)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 2
    assert lengths[-1] >= 5


def test_dear_rows_and_rare_hits_stop_the_guessing() -> None:
    ids = [1, 2, 3, 1, 2]
    assert propose(ids, MAX_DRAFT, cost=0.9) == []
    assert len(propose(ids, MAX_DRAFT, cost=0.01)) > len(propose(ids, MAX_DRAFT, cost=0.2))


def test_guessing_stops_when_it_does_not_pay_and_is_tried_again() -> None:
    lookup, ids = PromptLookup(), [1, 2, 3, 1, 2]
    for _ in range(20):
        lookup.propose(ids, MAX_DRAFT, COST)
        lookup.record(2, 0)
    drafts = [lookup.propose(ids, MAX_DRAFT, COST) for _ in range(100)]
    assert 1 <= len([draft for draft in drafts if draft]) <= 3
    # Long matches are counted apart, so they are still guessed.
    same = prompt(1, 20)
    ids = [*ids, *same, *range(200, 220), *same]
    assert len(lookup.propose(ids, MAX_DRAFT, COST)) >= 5
    ids = [*ids, 90, 1, 2]
    lookup.propose(ids, MAX_DRAFT, COST)
    for _ in range(30):
        lookup.record(3, 3)
    assert len(lookup.propose(ids, MAX_DRAFT, COST)) >= 4


def test_cost_of_a_row_is_the_slope_of_step_times() -> None:
    cost = RowCost()
    assert cost.share(1) == pytest.approx(COST)
    for rows in (1, 2, 4, 1, 8, 3, 1, 5):
        cost.record(rows, 0.9 + 0.1 * rows)
    assert cost.share(1) == pytest.approx(0.1)
    assert cost.share(4) == pytest.approx(4 * 0.1 / 1.3)
    cost.record(1, 50.0)  # the machine was busy
    assert cost.share(1) == pytest.approx(0.1)
    for _ in range(1000):  # steps that are all alike teach nothing new
        cost.record(1, 1.0)
    assert cost.share(1) == pytest.approx(0.1)
    assert RowCost(0.7).share(3) == 0.7
    alike = RowCost()
    for _ in range(20):
        alike.record(1, 1.0)
    assert alike.share(1) == pytest.approx(COST)


def test_cost_of_a_row_follows_when_all_steps_become_dearer() -> None:
    """A long context after short ones: five times the time for one row, and each further row costs as much again."""
    cost = RowCost()
    for step in range(200):
        cost.record(1 + step % 4, 0.97 + 0.03 * (1 + step % 4))
    assert cost.share(1) == pytest.approx(0.05)  # the least that is believed
    for step in range(200):
        cost.record(1 + step % 4, 5.0 * (1 + step % 4))
    assert cost.share(1) > 0.9


def test_text_without_repetition_costs_few_guesses() -> None:
    """Twelve ids at random: almost every pair has occurred before, and says nothing about what follows."""
    made = engine(guess_cost=COST)
    options = {"temperature": 5.0, "seed": 1, "max_tokens": 200}
    item = request("a", prompt(0, 300), logit_bias=dict.fromkeys(range(5, 17), 100.0), **options)
    made.add_request(item)
    made.step()
    (sequence,) = made.scheduler.running
    run(made)
    assert sequence.num_new_tokens == 200
    assert 0 < sequence.lookup.num_drafted < 30


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}, {"temperature": 0.05, "seed": 1}]
)
def test_the_text_is_the_same_in_fewer_steps(options: dict[str, object]) -> None:
    # A strong bias makes the tiny model repeat itself, as copy-heavy text does.
    biased = options | {"max_tokens": 60, "logit_bias": {5: 9.0, 6: 9.0, 7: 9.0}}
    item = request("a", prompt(0, 40), **biased)
    answers, steps = steps_of(engine(guess_cost=COST), item)
    assert answers["a"] == alone(item)
    assert steps < 58


@pytest.mark.usefixtures("kv_dtype")
def test_in_a_batch_too() -> None:
    items = [request(f"r{i}", prompt(i, 20) * 3, max_tokens=40, logit_bias={5: 9.0, 6: 9.0}) for i in range(5)]
    answers, _ = steps_of(engine(max_num_seqs=3), *items)
    assert all(answers[item.request_id] == alone(item) for item in items)


@pytest.mark.usefixtures("kv_dtype")
def test_stop_ids_limits_and_logprobs_inside_a_guess() -> None:
    free = request("a", prompt(0, 40), max_tokens=60, logit_bias={5: 9.0, 6: 9.0}, logprobs=1)
    text = alone(free)
    stop = text[20]
    for options in ({"stop_token_ids": [stop]}, {"max_tokens": 21}, {"stop_token_ids": [stop], "min_tokens": 30}):
        item = request("a", prompt(0, 40), **({"max_tokens": 60, "logit_bias": {5: 9.0, 6: 9.0}} | options))
        assert steps_of(engine(), item)[0]["a"] == alone(item)
    made = engine()
    made.add_request(free)
    entries: list[Any] = []
    while made.has_unfinished_requests():
        for output in made.step():
            assert len(output.logprobs) == len(output.token_ids)
            entries += output.logprobs
    assert [entry.token_id for entry in entries] == text


@pytest.mark.usefixtures("kv_dtype")
def test_penalties_see_the_guessed_tokens_one_by_one() -> None:
    item = request("a", [3, 4, 5, 6] * 12, max_tokens=40, frequency_penalty=0.4, repetition_penalty=1.2)
    assert steps_of(engine(), item)[0]["a"] == alone(item)


@pytest.mark.usefixtures("kv_dtype")
def test_a_guess_never_preempts_anybody() -> None:
    made = engine(pages=5, max_num_seqs=2)
    items = [request(f"r{i}", [3, 4, 5, 6] * 15, max_tokens=20) for i in range(2)]
    answers, _ = steps_of(made, *items)
    assert all(answers[item.request_id] == alone(item) for item in items)
    assert made.prefix_cache.num_available_pages == 5


def test_a_page_taken_for_guesses_is_promised_to_nobody() -> None:
    """It holds the wrong guesses of one sequence, which will need it; another one must wait and not be preempted."""
    made = engine(pages=3, max_num_seqs=2, guess_cost=0.01)
    ids = [3, 3, 3, 3, 7, 8, 9, 10, 11, 12, 13] * 5 + [3, 3, 3]
    made.add_request(request("old", ids, max_tokens=12, logit_bias={3: 100.0}))
    made.step()
    made.step()
    (old,) = made.scheduler.running
    assert (len(old.ids), len(old.pages)) == (60, 3)
    made.add_request(request("new", [5], max_tokens=3))
    made.step()
    assert made.scheduler.running == [old]
    assert run(made)["new"] == alone(request("new", [5], max_tokens=3))
    assert made.scheduler.num_preemptions == 0


def test_guesses_leave_the_pages_a_prompt_was_let_in_for() -> None:
    """The first one guesses wrongly beyond its page while the second one, in chunks, needs all that are left."""
    made = engine(pages=5, max_num_seqs=2, guess_cost=0.01, max_prefill_beside_decode=32)
    ids = [3, 3, 3, 3, 7, 8, 9, 10, 11, 12, 13] * 5 + [3, 3, 3]
    made.add_request(request("old", ids, max_tokens=20, logit_bias={3: 100.0}))
    made.step()
    made.add_request(request("long", prompt(1, 94), max_tokens=2))
    for _ in range(3):
        made.step()
    made.abort("old")
    assert run(made)["long"] == alone(request("long", prompt(1, 94), max_tokens=2))[1:]
    assert made.scheduler.num_preemptions == 0


def test_the_context_may_be_filled_by_guesses() -> None:
    item = request("a", [3, 4] * 30, max_tokens=None, logit_bias={3: 20.0, 4: 20.0})
    made = engine(pages=3, max_model_len=96)
    made.add_request(item)
    assert len(run(made)["a"]) == 36
