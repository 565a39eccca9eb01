"""Scoring a prompt uses the pages that an earlier scoring left, and gets the same numbers to the last bit."""

from __future__ import annotations

import pytest
from test_engine import engine, finish, kv_dtype, prompt, request

from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput
from glm4.model.kv_cache import PAGE_SIZE

__all__ = ["kv_dtype"]  # a fixture


def score(made: Engine, ids: list[int], num_top: int = 1) -> GenerationOutput:
    return finish(made, request("x", ids, prompt_logprobs=num_top, max_tokens=1))


def fresh(ids: list[int], num_top: int = 1) -> GenerationOutput:
    return score(engine(caching=False), ids, num_top)


@pytest.mark.usefixtures("kv_dtype")
@pytest.mark.parametrize("common", [1, 31, 32, 33, 50, 63, 64, 65, 90])
@pytest.mark.parametrize("length", [91, 96, 97, 128, 129])
def test_prompts_that_part_at_any_place_of_a_page(common: int, length: int) -> None:
    made = engine()
    first, second = prompt(0, length), [*prompt(0, common), *prompt(1, length - common)]
    for number, ids in enumerate((first, second, first, second)):
        output = score(made, ids)
        assert output.prompt_logprobs == fresh(ids).prompt_logprobs
        assert output.token_ids == fresh(ids).token_ids
        # All that both have in common, but the row that is to predict another token; in the end all but the last id.
        assert output.num_cached_tokens == (0, common - 1, length - 1, length - 1)[number]


def test_more_alternatives_than_kept_are_computed_and_then_kept() -> None:
    made, ids = engine(), prompt(0, 70)
    for num_top, cached in ((0, 0), (1, 0), (0, 69), (1, 69), (5, 0), (3, 69), (5, 69), (0, 69)):
        output = score(made, ids, num_top)
        assert output.num_cached_tokens == cached, num_top
        assert output.prompt_logprobs == fresh(ids, num_top).prompt_logprobs


def test_a_page_that_was_only_read_has_no_scores_yet() -> None:
    made, ids = engine(), prompt(0, 70)
    finish(made, request("plain", ids))
    for cached in (0, 69):
        output = score(made, ids)
        assert output.num_cached_tokens == cached
        assert output.prompt_logprobs == fresh(ids).prompt_logprobs
    assert finish(made, request("plain", ids)).num_cached_tokens == 64


def test_many_continuations_of_one_page_forget_the_oldest() -> None:
    made, ids = engine(), prompt(0, 2 * PAGE_SIZE)
    for token in range(40):
        score(made, [*ids, token, 1])
    assert score(made, [*ids, 39, 1]).num_cached_tokens == 2 * PAGE_SIZE + 1
    forgotten = score(made, [*ids, 0, 1])
    assert forgotten.num_cached_tokens == 2 * PAGE_SIZE - 1
    assert forgotten.prompt_logprobs == fresh([*ids, 0, 1]).prompt_logprobs
    assert made.prefix_cache.score_nbytes < 2 * PAGE_SIZE * 24
    assert len(made.prefix_cache._nodes) < 8, "nor does it keep all of their last pages"


def test_a_dropped_page_gives_its_scores_back() -> None:
    made = engine()
    score(made, prompt(0, 70))
    assert made.prefix_cache.score_nbytes == 69 * 16, "16 bytes a token, with one alternative"
    assert made.stats().prompt_score_nbytes == 69 * 16
    made.prefix_cache.clear()
    assert made.stats().prompt_score_nbytes == 0


def test_neighbors_that_score_the_same_prompt_at_once() -> None:
    made, ids = engine(max_num_batched_tokens=40), prompt(0, 90)
    for name in "abc":
        made.add_request(request(name, ids, prompt_logprobs=2, max_tokens=1))
    found = []
    while made.has_unfinished_requests():
        found += [o.prompt_logprobs for o in made.step() if o.prompt_logprobs is not None]
    assert found == [fresh(ids, 2).prompt_logprobs] * 3
