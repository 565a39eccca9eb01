"""Sampled text with speculation has exactly the model's distribution: chi-square over thousands of seeded samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_engine import CONFIG

from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.precision import PRECISIONS
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams

VOCAB, NEW, SAMPLES = 6, 4, 3000
SMALL = replace(CONFIG, vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
MODEL = random_model(SMALL, PRECISIONS["fp32"], get_kernels(), seed=5)
# Every pair of ids occurs, so after any first token there is something to guess.
PROMPT = [*np.random.default_rng(0).integers(0, VOCAB, 120).tolist(), 1, 2]
# Makes the random model's nearly flat distribution uneven, so that guesses come true often and a wrong rule shows.
BIAS = {0: 1.2, 1: 0.6, 4: -0.7}


def exact() -> np.ndarray:
    """Probabilities of the last three of four new ids, [VOCAB, VOCAB, VOCAB]: the model run on every possible text."""
    texts = [[*PROMPT, *index] for index in np.ndindex(*(VOCAB,) * (NEW - 1))]
    length = len(texts[0])
    joint = np.empty((len(texts), NEW, VOCAB))
    for first in range(0, len(texts), 27):
        group = texts[first : first + 27]
        cache = KVCache(SMALL, len(group) * pages_for(length), "fp32")
        pages = np.arange(cache.num_pages).reshape(len(group), -1).tolist()
        batch = ForwardBatch.build(pages, [0] * len(group), [length] * len(group))
        hidden = MODEL.forward(np.asarray(group, np.int32).ravel(), batch, cache).reshape(len(group), length, -1)
        for row, states in enumerate(hidden):
            logits = MODEL.logits(np.ascontiguousarray(states[-NEW:])).astype(np.float64)
            for token, value in BIAS.items():
                logits[:, token] += value
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            joint[first + row] = weights / weights.sum(axis=1, keepdims=True)
    steps = joint.reshape(*(VOCAB,) * (NEW - 1), NEW, VOCAB)
    a = steps[:, 0, 0, 0][0]  # of the first id
    b, c, d = steps[:, 0, 0, 1], steps[:, :, 0, 2], steps[:, :, :, 3]
    whole = a[:, None, None, None] * b[:, :, None, None] * c[:, :, :, None] * d
    return whole.sum(axis=0)


def sampled(max_num_seqs: int, rows: int) -> tuple[np.ndarray, float]:
    """Counts of the last three of four new ids, and the share of guesses that came true."""
    cache = KVCache(SMALL, 8 * max_num_seqs, "fp32")
    config = SchedulerConfig(max_num_seqs=max_num_seqs, max_speculative_rows=rows, guess_cost=0.01)
    engine = Engine(MODEL, cache, 160, config)
    counts = np.zeros((VOCAB,) * (NEW - 1))
    found: dict[str, list[int]] = {}
    for seed in range(SAMPLES):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=NEW, logit_bias=BIAS)
        engine.add_request(GenerationRequest(str(seed), Prompt(PROMPT), params))
    sequences = list(engine.scheduler.waiting)
    while engine.has_unfinished_requests():
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.token_ids)
    for ids in found.values():
        counts[tuple(ids[1:])] += 1
    drafted = sum(sequence.lookup.num_drafted for sequence in sequences)
    return counts, sum(sequence.lookup.num_accepted for sequence in sequences) / max(1, drafted)


def fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Chi-square below its quantile 0.999; cells where fewer than five samples are expected count as one."""
    expected = probabilities * counts.sum()
    large = expected >= 5
    seen = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    freedom = len(seen) - 1
    assert freedom > 50
    limit = freedom * (1 - 2 / (9 * freedom) + 3.0902 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty
    return float(((seen - expected) ** 2 / expected).sum()) < limit


@pytest.mark.thorough
@pytest.mark.parametrize(("max_num_seqs", "rows"), [(1, 8), (5, 16)], ids=["one by one", "in batches"])
def test_sampled_text_has_the_models_distribution(max_num_seqs: int, rows: int) -> None:
    probabilities = exact()
    assert probabilities.sum() == pytest.approx(1.0)
    counts, hit_rate = sampled(max_num_seqs, rows)
    assert counts.sum() == SAMPLES
    assert 0.1 < hit_rate < 0.6  # both outcomes are common
    assert fits(counts, probabilities)
    # The test can tell: a distribution a little more even is refused.
    flatter = probabilities**0.8
    assert not fits(counts, flatter / flatter.sum())
