"""The sampler against straightforward formulas, and its promises about seeds, bans and penalties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.engine.protocol import GenerationRequest
from glm4.engine.sampling import Sampler, largest, nucleus, pick, token_logprobs
from glm4.errors import Glm4Error
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams

NO_IDS = np.empty(0, np.int64)


def sampler(
    prompt: list[int] | None = None, *, stop: frozenset[int] = frozenset(), index: int = 0, **options: object
) -> Sampler:
    request = GenerationRequest("r", Prompt(prompt or [0]), SamplingParams(**options), stop, index)  # type: ignore[arg-type]
    return Sampler(request, NO_IDS)


def frequencies(make: Sampler, logits: np.ndarray, draws: int = 4000) -> np.ndarray:
    counts = np.zeros(len(logits))
    for _ in range(draws):
        counts[make.sample(logits.copy(), 0)] += 1
    return counts / draws


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)


def test_greedy_takes_the_most_likely() -> None:
    assert sampler(temperature=0).sample(LOGITS.copy(), 0) == 0


def test_the_distribution_is_softmax_of_logits_over_temperature() -> None:
    seen = frequencies(sampler(temperature=0.7, seed=1), LOGITS)
    assert np.abs(seen - softmax(LOGITS / 0.7)).max() < 0.03


def test_top_k_keeps_k_and_renormalises() -> None:
    seen = frequencies(sampler(top_k=2, seed=1), LOGITS)
    expected = np.zeros(6)
    expected[:2] = softmax(LOGITS[:2])
    assert np.abs(seen - expected).max() < 0.03
    assert seen[2:].sum() == 0


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    probabilities = softmax(LOGITS)
    just_two = float(probabilities[:2].sum()) - 1e-4
    assert frequencies(sampler(top_p=just_two, seed=1), LOGITS)[2:].sum() == 0
    assert frequencies(sampler(top_p=just_two + 2e-4, seed=1), LOGITS)[2] > 0
    assert frequencies(sampler(top_p=0.0, seed=1), LOGITS)[0] == 1  # OpenAI's lower bound: the most likely token


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    ratio = float(softmax(LOGITS)[2] / softmax(LOGITS)[0])
    assert frequencies(sampler(min_p=ratio * 1.01, seed=1), LOGITS)[2:].sum() == 0
    assert frequencies(sampler(min_p=ratio * 0.99, seed=1), LOGITS)[2] > 0


def test_filters_compose_over_original_ids() -> None:
    logits = LOGITS[::-1].copy()
    seen = frequencies(sampler(min_p=0.01, top_k=3, top_p=0.9, seed=1), logits)
    assert seen[:3].sum() == 0
    assert seen[5] > seen[4] > 0


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_nucleus_equals_a_full_sort(values: list[float], top_p: float) -> None:
    weights = np.array(values)
    kept = nucleus(weights, top_p)
    rest = np.delete(weights, kept)
    target = top_p * weights.sum()
    assert weights[kept].sum() >= target * (1 - 1e-9)
    assert weights[kept].sum() - weights[kept].min() < target * (1 + 1e-9)
    assert not len(rest) or rest.max() <= weights[kept].min()


@given(st.integers(1, 3000), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_largest_equals_a_full_sort(size: int, count: int, seed: int, ties: bool) -> None:
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    values = np.round(values) if ties else values
    assert largest(values, min(count, size)).tolist() == sorted(np.argsort(-values, kind="stable")[:count].tolist())


@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1))
def test_pick_hits_only_entries_with_weight(size: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = (random.random(size) * (random.random(size) < 0.2)).astype(np.float32)
    weights[random.integers(size)] = 0.5
    assert weights[pick(weights, share)] > 0


def test_pick_is_in_proportion_over_a_whole_vocabulary() -> None:
    weights = np.random.default_rng(0).random(5000).astype(np.float32)
    shares = (np.arange(50_000) + 0.5) / 50_000
    counts = np.bincount([pick(weights, share) for share in shares], minlength=5000)
    assert np.abs(counts / 50_000 - weights / weights.sum()).max() < 3e-5


def test_nucleus_larger_than_the_first_guess() -> None:
    assert len(nucleus(np.ones(5000), 0.9)) == 4500


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    # Token 0 (2.0 → 1.0) falls behind token 1 (1.1); token 5 in the prompt stays last.
    logits = np.array([2.0, 1.1, 0, 0, 0, -3.0], np.float32)
    assert sampler([0, 5], temperature=0, repetition_penalty=2.0).sample(logits, 0) == 1
    assert logits[0] == 1.0
    assert logits[5] == -6.0


def test_repetition_penalty_covers_the_output_too() -> None:
    made = sampler([3], temperature=0, repetition_penalty=1.5)
    logits = np.array([2.0, 1.9, 1.8, 0, 0, 0], np.float32)
    assert [made.sample(logits.copy(), i) for i in range(3)] == [0, 1, 2]


def test_presence_and_frequency_count_output_only() -> None:
    made = sampler([0, 1], temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    logits = np.array([2.0, 1.0, 0, 0, 0, 0], np.float32)
    assert made.sample(logits.copy(), 0) == 0  # the prompt does not count
    row = logits.copy()
    made.sample(row, 1)
    assert row[0] == pytest.approx(2.0 - 1.0 - 0.5)


def test_logit_bias_forces_and_forbids() -> None:
    assert sampler(temperature=0, logit_bias={4: 100.0}).sample(LOGITS.copy(), 0) == 4
    assert sampler(temperature=0, logit_bias={0: -100.0}).sample(LOGITS.copy(), 0) == 1


def test_banned_rows_are_never_sampled_even_when_biased() -> None:
    request = GenerationRequest("r", Prompt([0]), SamplingParams(temperature=0, logit_bias={0: 100.0}))
    made = Sampler(request, np.array([0, 1]))
    assert made.sample(LOGITS.copy(), 0) == 2


def test_min_tokens_bans_every_stop_id() -> None:
    made = sampler(stop=frozenset({0}), temperature=0, min_tokens=2, max_tokens=5, stop_token_ids=[1])
    assert [made.sample(LOGITS.copy(), i) for i in range(3)] == [2, 2, 0]


def test_same_seed_same_tokens_and_samples_differ() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 500)).astype(np.float32)

    def run(**options: object) -> list[int]:
        made = sampler(**options)  # type: ignore[arg-type]
        return [made.sample(row.copy(), 0) for row in rows]

    assert run(seed=7) == run(seed=7)
    assert run(seed=7) != run(seed=8)
    assert run(seed=7) != run(seed=7, index=1)
    assert run(seed=-1) == run(seed=-1)


def test_not_a_number_is_an_error_and_no_token() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(Glm4Error, match="finite"):
            sampler(temperature=temperature).sample(np.full(6, np.nan, np.float32), 0)


@settings(max_examples=50)
@given(st.integers(0, 5), st.integers(0, 5))
def test_token_logprobs_rank_and_order(token: int, num_top: int) -> None:
    logprobs = np.log(softmax(LOGITS)).astype(np.float32)
    entry = token_logprobs(logprobs, token, num_top)
    assert entry.rank == token + 1  # LOGITS are in descending order
    assert [index for index, _ in entry.top] == list(range(num_top))
    assert entry.logprob == pytest.approx(float(logprobs[token]))
