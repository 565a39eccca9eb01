"""Requests with pictures in the engine: the same bits however they are computed, and nobody held up."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from seeing import (
    CONFIG,
    MODELS,
    NUM_ROWS,
    PIXELS,
    REQUESTS,
    ROW_NBYTES,
    SLOW,
    VISION,
    Answer,
    alone,
    ask,
    engine,
    prompt,
    run,
    take,
    words,
)

from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput
from glm4.engine.sequence import prompt_positions
from glm4.errors import InternalError, InvalidRequestError
from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.model.vision import Encoding, text_operations, tower_operations
from glm4.prompt import MediaSpan, Prompt


@pytest.fixture(scope="module", params=MODELS)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def answers(dtype: str) -> dict[str, Answer]:
    """Each request in an engine of its own."""
    return {name: alone(request, dtype) for name, request in REQUESTS.items()}


@pytest.fixture(scope="module")
def answers_fp32() -> dict[str, Answer]:
    return {name: alone(request) for name, request in REQUESTS.items()}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = get_kernels().num_threads()
    yield
    get_kernels().set_num_threads(before)


# What comes out


def whole_forward(model: Transformer, wanted: Prompt, ids: list[int]) -> NDArray[np.float32]:
    """Outputs behind these ids, which begin with a prompt's: one pass, below the engine, pictures in one piece."""
    assert model.vision is not None
    rows = []
    for span in wanted.spans:
        encoding = model.vision.start(wanted.pixels[span.digest])
        encoding.advance(1 << 40)
        assert encoding.result is not None
        rows.append((span.start, encoding.result))
    pages = list(range(pages_for(len(ids))))
    given = prompt_positions(wanted)
    assert given is not None
    behind = np.arange(len(ids) - len(wanted), dtype=np.int32) + given[-1] + 1
    batch = ForwardBatch.build([pages], [0], [len(ids)], positions=[np.concatenate([given, behind]).astype(np.int32)])
    return model.forward(np.array(ids, np.int32), batch, KVCache(CONFIG, len(pages), "fp32"), rows)


@pytest.mark.parametrize("name", ["first", "both", "ends"])
def test_an_answer_is_that_of_the_model_itself(name: str, dtype: str, answers: dict[str, Answer]) -> None:
    model, request = MODELS[dtype], REQUESTS[name]
    ids = list(request.prompt_ids)
    for token, scored in answers[name]:
        logits = model.logits(whole_forward(model, request.prompt, ids)[-1:])
        scores = model.kernels.log_softmax(logits)[0]
        best = np.argsort(-scores, kind="stable")[:5]
        assert token == best[0]
        assert getattr(scored, "top") == tuple((int(one), float(scores[one])) for one in best)  # noqa: B009
        ids.append(token)


def test_another_picture_is_another_answer(answers: dict[str, Answer]) -> None:
    first, other = answers["first"], answers["other"]
    assert [scored for _, scored in first] != [scored for _, scored in other]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threads": 3},
        {"max_num_batched_tokens": 7, "max_prefill_beside_decode": 3},
        {"max_num_batched_tokens": 33, "caching": False, "threads": 2},
        {"max_speculative_rows": 8, "guess_cost": 0.0},
        {"kept": 0, "max_num_seqs": 2},
        {"kept": 0, "caching": False, "max_num_seqs": 1},
        {"pages": 8, "kept": 0, "max_num_seqs": 4, "max_num_batched_tokens": 40},
        {"pages": 10, "caching": False, "max_num_seqs": 4, "max_num_batched_tokens": 40},
        SLOW,
    ],
    ids=str,
)
def test_batches_chunks_caches_and_preemption(dtype: str, answers: dict[str, Answer], options: dict[str, Any]) -> None:
    """All at once, and once more behind them, where pages and rows are kept."""
    get_kernels().set_num_threads(options.get("threads", 1))
    made = engine(dtype, **{key: value for key, value in options.items() if key != "threads"})
    again = [replace(request, request_id=f"{name}+") for name, request in REQUESTS.items()]
    found = run(made, *REQUESTS.values(), *again)
    assert found.keys() == {*REQUESTS, *(f"{name}+" for name in REQUESTS)}
    for name, answer in found.items():
        assert answer == answers[name.rstrip("+")], name
    assert (made.scheduler.num_preemptions > 0) == ("pages" in options)


def test_embeddings(dtype: str) -> None:
    requests = {name: ask(name, prompt(words(2, 5), name, words(3, 9)), pooling="mean") for name in "ab"}
    made = engine(dtype, max_num_batched_tokens=19)
    for request in (*requests.values(), ask("text", Prompt(words(1, 20)), max_tokens=30)):
        made.add_request(request)
    found: dict[str, NDArray[np.float32]] = {}
    while made.has_unfinished_requests():
        found |= {one.request_id: one.embedding for one in made.step() if one.embedding is not None}
    for name, request in requests.items():
        model = MODELS[dtype]
        hidden = model.final_norm(whole_forward(model, request.prompt, list(request.prompt_ids)))
        mean = hidden.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found[name], mean / np.linalg.norm(mean), atol=1e-6)
    assert not np.allclose(found["a"], found["b"], atol=1e-3)


def test_log_probabilities_of_a_prompt_leave_out_the_rows_of_pictures(dtype: str) -> None:
    wanted = prompt(words(2, 5), "a", words(3, 60))
    (span,) = wanted.spans
    model, made = MODELS[dtype], engine(dtype, max_num_batched_tokens=50)
    logits = model.logits(whole_forward(model, wanted, list(wanted.ids))[:-1])
    scores = model.kernels.log_softmax(logits)
    expected = [float(scores[row, token]) for row, token in enumerate(wanted.ids[1:])]
    for name in ("new", "known"):
        made.add_request(ask(name, wanted, prompt_logprobs=2, max_tokens=1))
        outputs = []
        while made.has_unfinished_requests():
            outputs += made.step()
        (output,) = outputs
        assert output.prompt_logprobs is not None
        assert output.num_cached_tokens == (0 if name == "new" else 4 * PAGE_SIZE)
        for row, at in enumerate(output.prompt_logprobs):
            if row == 0 or span.start <= row < span.end:
                assert at is None
            else:
                assert at is not None
                assert (at.token_id, at.logprob) == (wanted.ids[row], expected[row - 1])


# Beside others


def test_a_stream_goes_on_while_a_picture_is_encoded() -> None:
    neighbor = ask("text", Prompt(words(1, 10)), max_tokens=300)
    made = engine(**SLOW)
    made.add_request(neighbor)
    found: dict[str, Answer] = {}
    take(found, made.step())
    made.add_request(REQUESTS["first"])
    # In rows of the text model: what it may take, and one more piece of the smallest size, which it may begin.
    text, tower = text_operations(CONFIG), sum(tower_operations(CONFIG))
    assert VISION is not None
    layer = 2 * VISION.hidden_size * (VISION.num_positions + VISION.intermediate_size) + VISION.hidden_size**2
    projector = CONFIG.hidden_size * (VISION.merged_columns + CONFIG.hidden_size + 3 * CONFIG.intermediate_size)
    most = (text + 32 * max(layer, projector)) / tower
    steps, before = 0, 0.0
    while made.stats().pictures_encoded == 0:
        outputs = made.step()
        assert [output.request_id for output in outputs] == ["text"]
        take(found, outputs)
        steps += 1
        now = made.stats().encoding
        assert (made.stats().num_running, made.stats().num_waiting) == (1, 1)
        if now is not None:
            assert 0 < now - before <= most
            before = now
    assert steps > 30
    take(found, (outputs := made.step()))
    assert made.stats().num_running == 2
    while made.has_unfinished_requests():
        take(found, made.step())
    assert found["first"] == alone(REQUESTS["first"])
    assert found["text"] == alone(neighbor)


def test_a_picture_and_a_prompt_share_the_rows_of_a_step() -> None:
    made = engine(max_num_batched_tokens=64, max_prefill_beside_decode=10)
    made.add_request(REQUESTS["first"])
    made.step()
    assert made.scheduler.encoder_rows == 64  # nothing else runs
    made.add_request(ask("long", Prompt(words(1, 300)), max_tokens=40))
    made.step()
    (sequence,) = made.scheduler.running
    assert (sequence.num_computed, made.scheduler.encoder_rows) == (32, 32)
    made.abort("first")
    while sequence.num_remaining != 1:
        made.step()
    for name, wanted in (("more", Prompt(words(2, 100))), ("picture", prompt("b", [1]))):
        made.add_request(ask(name, wanted))
    made.step()
    assert made.scheduler.encoder_rows == 5
    assert [s.num_computed for s in made.scheduler.running if s.request_id == "more"] == [5]


def test_requests_are_not_held_up_by_a_picture_before_them() -> None:
    made = engine(max_num_seqs=1, **SLOW)
    for name in ("first", "text", "again"):
        made.add_request(REQUESTS[name])
    order = []
    while made.has_unfinished_requests():
        order += [output.request_id for output in made.step() if output.finish_reason]
    assert order == ["text", "first", "again"]


# Ends


def test_aborts_while_a_picture_is_encoded() -> None:
    made = engine(**SLOW)
    for name in ("first", "again", "other"):
        made.add_request(REQUESTS[name])
    made.step()
    made.step()
    progress = made.stats().encoding
    assert progress is not None
    assert made.request_ids() == ["first", "again", "other"]
    assert made.stats().num_waiting == 3
    made.abort("first")
    assert made.stats().encoding == progress  # another one waits for it
    assert made._encoder is not None
    assert made._encoder._current is not None
    freed = weakref.ref(made._encoder._current[1].hidden)
    made.abort("again")
    assert made.stats().encoding is None
    assert freed() is None  # at once, without the collection of cycles: it is 200 MB for GLM-4V-9B
    assert made.has_unfinished_requests()
    found = run(made)
    assert found == {"other": alone(REQUESTS["other"])}
    assert made.stats().pictures_encoded == 1
    made.add_request(REQUESTS["first"])
    made.step()
    made.close()
    assert (made.request_ids(), made.has_unfinished_requests(), made.stats().encoding) == ([], False, None)
    assert made.step() == []


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_the_others_get_their_answers(seed: int, answers_fp32: dict[str, Answer]) -> None:
    """Requests come and are dropped at random, with few pages, little memory for rows, and pages that vanish."""
    rng = np.random.default_rng(seed)
    made = engine(
        pages=9,
        kept=int(rng.integers(0, 3)) * ROW_NBYTES,
        caching=bool(rng.integers(0, 4)),
        max_num_seqs=int(rng.integers(1, 5)),
        max_num_batched_tokens=int(rng.integers(1, 60)),
        max_prefill_beside_decode=int(rng.integers(1, 20)),
    )
    found: dict[str, Answer] = {}
    coming = [f"{name}.{number}" for number in range(3) for name in rng.permutation(list(REQUESTS))]
    dropped: set[str] = set()
    while coming or made.has_unfinished_requests():
        if coming and rng.random() < 0.2:
            name = coming.pop()
            made.add_request(replace(REQUESTS[name.split(".")[0]], request_id=name))
        if made.has_unfinished_requests() and rng.random() < 0.02:
            victim = str(rng.choice(made.request_ids()))
            dropped.add(victim)
            made.abort(victim)
        if rng.random() < 0.05:
            made.prefix_cache.clear()
        if made.scheduler.running and rng.random() < 0.02:
            made.scheduler._preempt(made.scheduler.running[-1])
        take(found, made.step())
    for name, answer in found.items():
        whole = answers_fp32[name.split(".")[0]]
        assert answer == (whole[: len(answer)] if name in dropped else whole)
    assert made.prefix_cache.num_used_pages == 0


def test_a_pass_too_large_for_the_memory_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    made, forward, refused = engine(), MODELS["fp32"].forward, list[int]()

    def limited(ids: NDArray[np.int32], *rest: Any) -> NDArray[np.float32]:
        if len(ids) > 110:
            refused.append(len(ids))
            raise MemoryError
        return forward(ids, *rest)

    monkeypatch.setattr(made.model, "forward", limited)
    found = run(made, *(REQUESTS[name] for name in ("first", "again", "other", "ends")))
    monkeypatch.undo()
    assert refused
    assert found == {name: alone(REQUESTS[name]) for name in found}


@pytest.mark.parametrize("where", ["start", "later"])
def test_a_picture_that_fails_ends_those_who_wait_for_it(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, tries = Encoding.advance, 0

    def break_one(encoding: Encoding, max_rows: int) -> None:
        nonlocal tries
        if encoding._pixels is PIXELS["a"] and (where == "start" or encoding.progress > 0.5):
            tries += 1
            raise RuntimeError("broken")
        advance(encoding, max_rows)

    monkeypatch.setattr(Encoding, "advance", break_one)
    made = engine(**SLOW)
    for name in ("text", "first", "other", "both"):
        made.add_request(REQUESTS[name])
    found: dict[str, Answer] = {}
    failed: dict[str, GenerationOutput] = {}
    while made.has_unfinished_requests():
        outputs = made.step()
        failed |= {output.request_id: output for output in outputs if output.error is not None}
        take(found, [output for output in outputs if output.error is None])
    assert failed.keys() == {"first", "both"}
    assert tries == 1
    for output in failed.values():
        assert isinstance(output.error, InternalError)
        assert (output.finish_reason, output.token_ids) == ("error", ())
    monkeypatch.undo()
    assert found == {name: alone(REQUESTS[name]) for name in ("text", "other")}
    assert made.prefix_cache.num_used_pages == 0
    assert run(made, REQUESTS["first"])["first"] == alone(REQUESTS["first"])  # nothing wrong was kept


def test_an_interrupted_piece_is_not_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(**SLOW)
    made.add_request(REQUESTS["first"])
    for _ in range(3):
        made.step()
    gelu, calls = made.model.kernels.gelu_, 0

    def interrupt(x: NDArray[np.float32]) -> None:  # between two changes of the same rows
        nonlocal calls
        calls += 1
        gelu(x)
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(made.model.kernels, "gelu_", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert calls == 3
    assert made.stats().encoding is None
    assert run(made) == {"first": alone(REQUESTS["first"])}


WRONG = {
    "in this model's prompts, not 11": replace(
        prompt("a"), spans=(MediaSpan(0, 11, "image", "a"),), pixels={"a": PIXELS["a"]}
    ),
    "an audio": replace(prompt("a"), spans=(MediaSpan(0, NUM_ROWS, "audio", "a"),)),
    "no pixels for its picture 'a'": replace(prompt("a"), pixels={"b": PIXELS["b"]}),
    "not uint8 [100, 224, 3]": replace(prompt("a"), pixels={"a": PIXELS["a"][:100]}),
    "not float32 [224, 224, 3]": replace(prompt("a"), pixels={"a": PIXELS["a"].astype(np.float32)}),
    "not list": replace(prompt("a"), pixels={"a": PIXELS["a"].tolist()}),
}


@pytest.mark.parametrize("text", WRONG)
def test_prompts_that_the_tower_cannot_take_are_refused(text: str) -> None:
    made = engine()
    with pytest.raises(InvalidRequestError) as caught:
        made.add_request(ask("r", WRONG[text]))
    assert text in str(caught.value)
    assert caught.value.param == "prompt"
    assert not made.has_unfinished_requests()


def test_a_model_without_a_tower_refuses_pictures() -> None:
    text = replace(CONFIG, vision=None)
    made = Engine(random_model(text, PRECISIONS["fp32"], get_kernels()), KVCache(text, 8, "fp32"), 8 * PAGE_SIZE)
    with pytest.raises(InvalidRequestError, match="this model takes text only, and the prompt has an image"):
        made.add_request(REQUESTS["first"])
    stats = made.stats()
    assert (stats.pictures_encoded, stats.picture_cache_hits, stats.encoding) == (0, 0, None)
