"""Sequences that follow a grammar: what they spell, what it costs, and that nobody beside them notices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from automata import Automaton, Failing, random_automaton, word
from test_engine import CONFIG, MODEL, alone, engine, prompt, request, run

from glm4.engine import grammar
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest, TokenConstraint
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for

VOCAB = CONFIG.vocab_size
STOP = VOCAB - 1
SEEDS = range(25)


def guided(name: str, ids: list[int], constraint: TokenConstraint, **options: object) -> GenerationRequest:
    return replace(request(name, ids, **options), constraint=constraint)


def outputs_of(made: Engine, *items: GenerationRequest) -> dict[str, list[GenerationOutput]]:
    for item in items:
        made.add_request(item)
    outputs: dict[str, list[GenerationOutput]] = {item.request_id: [] for item in items}
    while made.has_unfinished_requests():
        for output in made.step():
            outputs[output.request_id].append(output)
    return outputs


def next_logits(ids: list[int]) -> np.ndarray:
    """What the model says after these ids, without an engine."""
    cache = KVCache(CONFIG, pages_for(len(ids)), "fp32")
    batch = ForwardBatch.build([list(range(cache.num_pages))], [0], [len(ids)])
    return MODEL.logits(MODEL.forward(np.asarray(ids, np.int32), batch, cache)[-1:])[0]


def expected(ids: list[int], automaton: Automaton, max_tokens: int) -> list[int]:
    """The greedy text: at each place the likeliest of the tokens that fit, or a stop id where the text may end."""
    text: list[int] = []
    while len(text) < max_tokens:
        state = automaton.follow(text)
        assert state is not None
        options = list(automaton.edges[state]) + (
            [STOP] if state in automaton.accepting and automaton.edges[state] else []
        )
        if not options:
            break
        logits = next_logits(ids + text)
        text.append(max(options, key=lambda token: (logits[token], -token)))
        if text[-1] == STOP:
            break
    return text


@pytest.fixture(scope="module")
def cases() -> list[tuple[GenerationRequest, list[int]]]:
    """Requests and their greedy texts. Prompts repeat themselves, so that there is much to guess."""
    made = []
    for seed in SEEDS:
        automaton = random_automaton(seed, VOCAB - 1)
        automaton = replace(automaton, vocab_size=VOCAB)
        ids = prompt(seed, 3 + seed) + expected(prompt(seed, 3 + seed), automaton, 8) * (seed % 3)
        ids = [token for token in ids if token != STOP]
        item = guided(f"c{seed}", ids, automaton, max_tokens=30)
        made.append((replace(item, stop_ids=frozenset([STOP])), expected(ids, automaton, 30)))
    return made


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("pages", [64, 7])
def test_each_text_is_the_likeliest_that_fits(
    cases: list[tuple[GenerationRequest, list[int]]], rows: int, pages: int
) -> None:
    made = engine(pages, 200, max_num_seqs=6, max_speculative_rows=rows, guess_cost=0.01)
    for item, _ in cases:
        made.add_request(item)
    answers = run(made)
    assert answers == {item.request_id: text for item, text in cases}
    assert any(len(text) == 30 for _, text in cases)
    assert any(text[-1] == STOP for _, text in cases)
    assert made.prefix_cache.num_available_pages == made.cache.num_pages
    if pages == 7:
        assert made.scheduler.num_preemptions


def test_guesses_come_true_under_a_grammar(cases: list[tuple[GenerationRequest, list[int]]]) -> None:
    """Otherwise the test above would say nothing about guesses."""
    accepted = []
    for item, text in cases:
        made = engine(max_speculative_rows=8, guess_cost=0.01)
        made.add_request(item)
        sequence = made._sequences[item.request_id]
        assert run(made)[item.request_id] == text
        accepted.append(sequence.lookup.num_accepted)
        assert sequence.lookup.num_accepted <= sequence.lookup.num_drafted
    assert sum(accepted) > 10


def test_sampled_text_is_the_same_with_guesses_and_without() -> None:
    for seed in SEEDS:
        item = guided(
            "s", prompt(seed, 20) * 2, random_automaton(seed, VOCAB), temperature=1.0, seed=seed, max_tokens=25
        )
        answers = []
        for rows in (0, 8):
            made = engine(max_speculative_rows=rows, guess_cost=0.01)
            made.add_request(item)
            answers.append(run(made)["s"])
        assert answers[0] == answers[1]


def test_a_stop_id_of_the_grammars_own_comes_only_where_it_names_it() -> None:
    """The likeliest token by far is such a stop id. Elsewhere another one ends the text, complete as it is."""
    named, other, likely = STOP, STOP - 1, {STOP: 100.0, STOP - 1: 50.0}
    anywhere = Automaton(VOCAB, {0: {1: 1}, 1: {1: 1}}, frozenset({0, 1}))
    item = replace(guided("a", prompt(1, 5), anywhere, logit_bias=likely), stop_ids=frozenset({named, other}))
    made = engine()
    made.add_request(item)
    assert run(made)["a"] == [named]
    own = replace(anywhere, own_ends=frozenset({named}))
    made = engine()
    made.add_request(replace(item, constraint=own))
    assert run(made)["a"] == [other]
    made = engine()
    made.add_request(replace(item, constraint=replace(own, edges={0: {1: 1, named: 2}, 1: {}, 2: {}})))
    assert run(made)["a"] == [named]
    asked = guided("a", prompt(1, 5), own, logit_bias=likely, stop_token_ids=[named])
    made = engine()
    made.add_request(asked)
    assert run(made)["a"] == [named], "the caller's own stop ids end a text anywhere"


def test_a_guess_that_does_not_fit_costs_nothing() -> None:
    """The prompt suggests a 2 behind two ones, and behind a 2 nothing may follow; but the model writes ones only."""
    dead_end = Automaton(VOCAB, {0: {1: 0, 3: 0, 2: 1}, 1: {}}, frozenset())
    item = guided("a", [1, 1, 2, 3] * 6, dead_end, max_tokens=12, logit_bias={1: 100.0})
    made = engine(max_speculative_rows=8, guess_cost=0.01)
    made.add_request(item)
    sequence = made._sequences["a"]
    answer = run(made)["a"]
    assert answer == alone(item)
    assert len(answer) == 12
    assert sequence.lookup.num_drafted


def test_a_forced_token_that_was_guessed_needs_no_further_pass() -> None:
    """A 1 and a 2 are chosen, 3 and 4 forced, as the prompt has them: guesses go on behind what is forced."""
    circle = Automaton(VOCAB, {0: {1: 1, 9: 1}, 1: {2: 2, 8: 2}, 2: {3: 3}, 3: {4: 0}}, frozenset())
    item = guided("a", [1, 2, 3, 4] * 6, circle, max_tokens=24, logit_bias={1: 100.0, 2: 100.0})
    passes = []
    for rows in (0, 8):
        outputs = outputs_of(engine(max_speculative_rows=rows, guess_cost=0.01), item)["a"]
        assert [token for output in outputs for token in output.token_ids] == [1, 2, 3, 4] * 6
        passes.append(len(outputs))
    assert passes[0] == 12
    assert passes[1] <= 6


def test_allowed_tokens_keep_their_relative_probability() -> None:
    ids, allowed = prompt(1, 10), [3, 50, 77, 100]
    automaton = Automaton(VOCAB, {0: dict.fromkeys(allowed, 1), 1: {}}, frozenset([1]))
    made = engine(max_num_seqs=8)
    counts: Counter[int] = Counter()
    for seed in range(1500):
        made.add_request(guided(str(seed), ids, automaton, temperature=1.0, seed=seed))
    for text in run(made).values():
        counts[text[0]] += 1
    weights = np.exp(next_logits(ids)[allowed].astype(np.float64))
    wanted = 1500 * weights / weights.sum()
    chi_square = sum((counts[token] - want) ** 2 / want for token, want in zip(allowed, wanted, strict=True))
    assert set(counts) == set(allowed)
    assert chi_square < 16.3  # three degrees of freedom, one in a thousand; the seeds are fixed


def test_free_sequences_beside_constrained_ones_are_as_if_alone() -> None:
    free = [
        request("f0", prompt(1, 40), max_tokens=40),
        request("f1", prompt(2, 5), temperature=1.0, seed=4, max_tokens=40),
    ]
    made = engine(max_num_seqs=8)
    outputs = outputs_of(made, *free, *(guided(f"c{s}", prompt(s, 9), random_automaton(s, VOCAB)) for s in range(4)))
    for item in free:
        assert [token for output in outputs[item.request_id] for token in output.token_ids] == alone(item)


def test_forced_tokens_take_one_pass_together() -> None:
    """Ten forced tokens, a choice, twenty forced tokens: two passes, for prompt and choice and for the end."""
    middle = {10: {5: 11, 6: 11}}
    chain = {i: {(7 * i) % VOCAB: i + 1} for i in [*range(10), *range(11, 31)]}
    branch = Automaton(VOCAB, {**chain, **middle, 31: {1: 32, 2: 32}, 32: {}}, frozenset([32]))
    made = engine()
    made.add_request(guided("a", prompt(1, 12), branch, max_tokens=50))
    outputs = []
    while made.has_unfinished_requests():
        outputs.append(made.step())
    assert [len(output.token_ids) for step in outputs for output in step] == [31, 1]
    assert outputs[-1][0].finish_reason == "stop"
    assert outputs[-1][0].stop_token_id is None


def test_log_probabilities_do_not_change_the_text() -> None:
    for seed in range(12):
        automaton = random_automaton(seed, VOCAB)
        plain = guided("a", prompt(seed, 9) * 3, automaton, temperature=1.0, seed=seed, max_tokens=20)
        scored = replace(plain, params=plain.params.replace(logprobs=1, prompt_logprobs=0))
        (one,), (two,) = ([outputs_of(engine(), item)["a"]] for item in (plain, scored))
        tokens = [token for output in two for token in output.token_ids]
        assert tokens == [token for output in one for token in output.token_ids]
        assert [entry.token_id for output in two for entry in output.logprobs] == tokens
        assert len(two[0].prompt_logprobs or ()) == len(scored.prompt_ids)
        assert (one[-1].finish_reason, one[-1].stop_token_id) == (two[-1].finish_reason, two[-1].stop_token_id)


def test_a_text_that_is_forced_as_a_whole_needs_the_model_only_for_what_is_asked() -> None:
    item = guided("a", prompt(1, 9), word([1, 2, 3], VOCAB))
    (output,) = outputs_of(engine(), item)["a"]
    assert (output.token_ids, output.finish_reason) == ((1, 2, 3), "stop")
    asked = replace(item, params=item.params.replace(prompt_logprobs=0))
    (output,) = outputs_of(engine(), asked)["a"]
    assert output.token_ids == (1, 2, 3)
    assert len(output.prompt_logprobs or ()) == 9


@pytest.mark.parametrize("pages", [64, 9])
def test_aborts_change_no_other_text(pages: int) -> None:
    """Requests come and go, pages are short."""
    rng = np.random.default_rng(pages)
    items = []
    for seed in range(24):
        options = {"temperature": seed % 2, "seed": seed, "max_tokens": 20, "logprobs": 0 if seed % 5 == 0 else None}
        item = guided(f"r{seed}", prompt(seed, 5 + seed) * 2, random_automaton(seed, VOCAB), **options)
        items.append(item if seed % 4 else replace(item, constraint=None))
    wanted = {item.request_id: alone(item) for item in items}
    made = engine(pages, 200, max_num_seqs=5, guess_cost=0.01)
    answers: dict[str, list[int]] = {item.request_id: [] for item in items}
    gone, left = set(), list(items)
    while left or made.has_unfinished_requests():
        for item in left[:2]:
            made.add_request(item)
            left.remove(item)
        if rng.random() < 0.1 and made.request_ids():
            gone.add(str(rng.choice(made.request_ids())))
            for name in gone:
                made.abort(name)
        for output in made.step():
            answers[output.request_id] += output.token_ids
    assert len(gone) < len(items)
    assert {n: ids for n, ids in answers.items() if n not in gone} == {n: i for n, i in wanted.items() if n not in gone}
    assert all(wanted[name][: len(answers[name])] == answers[name] for name in gone)
    assert made.prefix_cache.num_available_pages == made.cache.num_pages


def test_a_grammar_that_cannot_be_followed_ends_its_text_only() -> None:
    free = request("free", prompt(2, 9))
    made = engine()
    loop = Automaton(VOCAB, {0: {1: 0, 2: 0, 3: 0}}, frozenset())
    outputs = outputs_of(made, guided("a", prompt(1, 9), Failing(loop, 5)), free)
    tokens = [token for output in outputs["a"] for token in output.token_ids]
    assert outputs["a"][-1].finish_reason == "length"
    assert 0 < len(tokens) <= 5
    assert set(tokens) <= {1, 2, 3}
    assert [token for output in outputs["free"] for token in output.token_ids] == alone(free)
    dead_end = Automaton(VOCAB, {0: {1: 1, 2: 1}, 1: {}}, frozenset())
    assert outputs_of(engine(), guided("b", prompt(1, 9), dead_end))["b"][-1].finish_reason == "length"


def test_a_grammar_that_takes_too_long_ends_its_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MOST_SECONDS", -1.0)  # whatever it takes is too long
    free, choice = request("free", prompt(2, 9)), Automaton(VOCAB, {0: {1: 0, 2: 0}}, frozenset())
    forced = Automaton(VOCAB, {0: {4: 1}, 1: {1: 1, 2: 1}}, frozenset())
    outputs = outputs_of(engine(), guided("a", prompt(1, 9), choice), guided("b", prompt(1, 9), forced), free)
    for name in ("a", "b"):
        assert [output.token_ids for output in outputs[name]] == [()]
        assert outputs[name][-1].finish_reason == "length"
    assert [token for output in outputs["free"] for token in output.token_ids] == alone(free)


# How options for the end of a text work together with a grammar

TWO_OR_MORE = Automaton(VOCAB, {0: {1: 1, 2: 1}, 1: {1: 2, 2: 2}, 2: {1: 2, 2: 2}}, frozenset([2]))


def ended(constraint: TokenConstraint, stop_ids: tuple[int, ...] = (STOP,), **options: object) -> GenerationOutput:
    """The whole answer as one output. The bias makes the model stop as soon as it may."""
    bias = dict.fromkeys((STOP, 50), 100.0)
    item = guided("a", prompt(1, 6), constraint, **({"logit_bias": bias} | options))
    outputs = outputs_of(engine(), replace(item, stop_ids=frozenset(stop_ids)))["a"]
    return replace(outputs[-1], token_ids=tuple(token for output in outputs for token in output.token_ids))


def test_a_stop_id_comes_only_where_the_text_is_complete() -> None:
    answer = ended(TWO_OR_MORE)
    assert len(answer.token_ids) == 3
    assert (answer.token_ids[-1], answer.finish_reason, answer.stop_token_id) == (STOP, "stop", STOP)


def test_a_requests_own_stop_id_counts_like_the_models() -> None:
    answer = ended(TWO_OR_MORE, (), stop_token_ids=[50])
    assert len(answer.token_ids) == 3
    assert (answer.token_ids[-1], answer.stop_token_id) == (50, 50)
    cut = ended(word([1, 50, 2], VOCAB), (), stop_token_ids=[50])
    assert (cut.token_ids, cut.finish_reason) == ((1, 50), "stop")


def test_min_tokens_keeps_a_text_going_where_it_can() -> None:
    assert len(ended(TWO_OR_MORE, min_tokens=6).token_ids) == 7
    short = ended(word([1, 2], VOCAB), min_tokens=6)
    assert (short.token_ids, short.finish_reason) == ((1, 2), "stop")
    choice = Automaton(VOCAB, {0: {STOP: 1, 50: 1}, 1: {}}, frozenset([1]))
    only_stops = ended(choice, (STOP, 50), min_tokens=3)
    assert len(only_stops.token_ids) == 1
    assert only_stops.finish_reason == "stop"


def test_ignore_eos_leaves_the_end_to_the_grammar() -> None:
    answer = ended(TWO_OR_MORE, ignore_eos=True)
    assert len(answer.token_ids) == 12
    assert STOP not in answer.token_ids
    assert answer.finish_reason == "length"
    closed = ended(word([1, 2, STOP], VOCAB), ignore_eos=True)
    assert (closed.token_ids, closed.finish_reason, closed.stop_token_id) == ((1, 2, STOP), "stop", STOP)


def test_max_tokens_cuts_even_what_is_forced() -> None:
    answer = ended(word(list(range(40)), VOCAB), max_tokens=7)
    assert (answer.token_ids, answer.finish_reason) == (tuple(range(7)), "length")
    exact = ended(word([1, 2, 3], VOCAB), max_tokens=3)
    assert (exact.token_ids, exact.finish_reason) == ((1, 2, 3), "length")


def test_samples_of_one_grammar_go_separate_ways() -> None:
    automaton = random_automaton(5, VOCAB)
    items = [
        replace(guided(f"n{i}", prompt(1, 9), automaton, temperature=2.0, seed=1), sample_index=i) for i in range(6)
    ]
    outputs = outputs_of(engine(), *items)
    texts = [tuple(token for output in outputs[item.request_id] for token in output.token_ids) for item in items]
    assert len(set(texts)) > 1
    assert all(automaton.follow(text) is not None for text in texts)
