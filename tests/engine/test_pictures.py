"""Requests with pictures in the engine: the same bits however they are computed, nobody held up, nothing encoded twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_vision
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
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
from glm4.sampling_params import SamplingParams

SIZE = 224
CONFIG = replace(tiny_vision.CONFIG, vision=replace(tiny_vision.VISION, image_size=SIZE))
VISION = CONFIG.vision
assert VISION is not None
NUM_ROWS = VISION.num_rows  # over two pages
ROW_NBYTES = NUM_ROWS * CONFIG.hidden_size * 4
MODELS = {dtype: random_model(CONFIG, PRECISIONS[dtype], get_kernels(), seed=2) for dtype in ("fp32", "int8")}
PLACEHOLDER = 7
STEPS = 6
# A tower's piece beside other requests is as small as it can be, so that a picture takes many steps.
SLOW = {"max_prefill_beside_decode": 1, "max_num_batched_tokens": 24, "max_speculative_rows": 0}

Answer = list[tuple[int, object]]


def pixels(name: str) -> NDArray[np.uint8]:
    return np.random.default_rng(ord(name)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


PIXELS = {name: pixels(name) for name in "abcd"}


def words(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 100, length).tolist()


def prompt(*parts: list[int] | str) -> Prompt:
    """Ids, and pictures by name."""
    ids: list[int] = []
    spans: list[MediaSpan] = []
    for part in parts:
        if isinstance(part, str):
            offsets = (0, *[1] * (NUM_ROWS - 2), 2)
            spans.append(MediaSpan(len(ids), NUM_ROWS, "image", part, offsets))
            ids += [PLACEHOLDER] * NUM_ROWS
        else:
            ids += part
    return Prompt(ids, tuple(spans), {span.digest: PIXELS[span.digest] for span in spans})


def ask(name: str, wanted: Prompt, **options: Any) -> GenerationRequest:
    request = {key: options.pop(key) for key in ("cache_salt", "pooling") if key in options}
    params = SamplingParams(**({"temperature": 0, "max_tokens": STEPS, "logprobs": 5} | options))
    return GenerationRequest(name, wanted, params, **request)


def engine(
    dtype: str = "fp32", pages: int = 64, kept: int = 16 * ROW_NBYTES, caching: bool = True, **limits: Any
) -> Engine:
    config = SchedulerConfig(**({"max_speculative_rows": 0} | limits))
    length = min(pages * PAGE_SIZE, CONFIG.max_position_embeddings)
    return Engine(
        MODELS[dtype],
        KVCache(CONFIG, pages, "fp32"),
        length,
        config,
        enable_prefix_caching=caching,
        picture_cache_nbytes=kept,
    )


def run(made: Engine, *requests: GenerationRequest) -> dict[str, Answer]:
    for request in requests:
        made.add_request(request)
    found: dict[str, Answer] = {}
    while made.has_unfinished_requests():
        take(found, made.step())
    assert made.prefix_cache.num_used_pages == 0
    stats = made.stats()
    assert (stats.num_running, stats.num_waiting, stats.encoding) == (0, 0, None)
    return found


def take(found: dict[str, Answer], outputs: list[GenerationOutput]) -> None:
    for output in outputs:
        assert output.error is None, output.error
        found.setdefault(output.request_id, []).extend(zip(output.token_ids, output.logprobs, strict=True))


def alone(request: GenerationRequest, dtype: str = "fp32") -> Answer:
    return run(engine(dtype, caching=False, kept=0), request)[request.request_id]


LONG = words(5, 20)
REQUESTS = {
    "text": ask("text", Prompt(words(1, 40)), max_tokens=70),
    "first": ask("first", prompt(words(2, 5), "a", words(3, 9)), max_tokens=40),
    "again": ask("again", prompt(words(2, 5), "a", words(4, 30))),
    "other": ask("other", prompt(words(2, 5), "b", words(3, 9))),
    "both": ask("both", prompt("b", words(6, 3), "a", words(7, 4))),
    "twice": ask("twice", prompt(LONG, "c", LONG, "c", LONG), temperature=1.0, seed=4),
    "ends": ask("ends", prompt(words(8, 33), "d")),
}


@pytest.fixture(scope="module", params=MODELS)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def answers(dtype: str) -> dict[str, Answer]:
    """Each request in an engine of its own."""
    return {name: alone(request, dtype) for name, request in REQUESTS.items()}


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
    found = {}
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


# Encoded once


@pytest.mark.parametrize("kept", [0, 16 * ROW_NBYTES])
def test_one_picture_of_several_requests_is_encoded_once(kept: int, answers: dict[str, Answer]) -> None:
    made = engine(kept=kept, caching=False)
    samples = [ask(f"s{i}", REQUESTS["first"].prompt, temperature=1.0, seed=i) for i in range(3)]
    run(made, *samples, REQUESTS["again"])
    assert (made.stats().pictures_encoded, made.stats().picture_cache_hits) == (1, 0)
    run(made, REQUESTS["first"])
    again = (1, 1) if kept else (2, 0)
    assert (made.stats().pictures_encoded, made.stats().picture_cache_hits) == again


def test_rows_in_use_are_found_without_being_kept() -> None:
    made = engine(kept=0, caching=False)
    made.add_request(ask("runs", prompt("a", [1]), max_tokens=50))
    while not made.stats().num_running:
        made.step()
    made.add_request(REQUESTS["again"])
    assert (made.stats().num_waiting, len(made.scheduler.waiting)) == (1, 1)
    found: dict[str, Answer] = {}
    while made.has_unfinished_requests():
        take(found, made.step())
    assert made.stats().pictures_encoded == 1
    assert found["again"] == alone(REQUESTS["again"])


def test_who_does_not_know_the_salt_does_not_find_the_picture() -> None:
    made = engine()
    for salt, encoded in (("", 1), ("x", 2), ("y", 3), ("x", 3), ("", 3)):
        run(made, ask("r", prompt("a", words(encoded, 5)), cache_salt=salt))
        assert made.stats().pictures_encoded == encoded
    made = engine(**SLOW)
    run(made, ask("r", prompt("a", [1]), cache_salt="x"), ask("s", prompt("a", [1]), cache_salt="y"))
    assert made.stats().pictures_encoded == 2


def test_the_least_recently_used_rows_go_first() -> None:
    made = engine(kept=2 * ROW_NBYTES + ROW_NBYTES // 2, caching=False)
    for name, encoded in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4), ("c", 5), ("b", 5)):
        run(made, ask("r", prompt(name, [1])))
        assert made.stats().pictures_encoded == encoded, name


def test_pages_of_a_picture_are_enough(answers: dict[str, Answer]) -> None:
    """The prefix cache has the whole picture, so the tower has nothing to do, though its rows are gone."""
    made = engine(kept=0)
    run(made, REQUESTS["again"])
    question = ask("more", prompt(words(2, 5), "a", words(4, 30), words(9, 20)))
    found = run(made, question)
    assert (made.stats().pictures_encoded, made.stats().picture_cache_hits) == (1, 1)
    assert found["more"] == alone(question)
    # The last page with rows of the picture was not full, so it is not known.
    run(made, ask("ends", prompt(words(2, 5), "a")))
    assert made.stats().pictures_encoded == 2


@pytest.mark.parametrize("when", ["queued", "preempted"])
def test_pages_that_are_gone_are_computed_again_from_the_picture(when: str) -> None:
    made = engine(kept=0, **SLOW)
    long = prompt(words(2, 5), "a", words(3, 40))
    run(made, ask("before", long))
    again = ask("again", long, max_tokens=20)
    made.add_request(again)
    found: dict[str, Answer] = {}
    if when == "preempted":
        while len(found.get("again", ())) < 3:
            take(found, made.step())
        (sequence,) = made.scheduler.running
        assert not sequence.picture_rows
        made.scheduler._preempt(sequence)
    made.prefix_cache.clear()
    assert made.stats().pictures_encoded == 1
    while made.has_unfinished_requests():
        take(found, made.step())
    assert made.stats().pictures_encoded == 2
    assert found["again"] == alone(again)


def test_rows_made_ahead_are_limited() -> None:
    made = engine(kept=0, max_num_seqs=1)
    for name in "abcd":
        made.add_request(ask(name, prompt(name, [1]), max_tokens=60))
    most = 0
    while made.has_unfinished_requests():
        made.step()
        scheduler = made.scheduler
        most = max(most, len({digest for s in (*scheduler.running, *scheduler.waiting) for digest in s.picture_rows}))
    assert most == 2  # one that runs, and the next one
    assert made.stats().pictures_encoded == 4


# Ends


def test_aborts_while_a_picture_is_encoded(answers: dict[str, Answer]) -> None:
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
    made.abort("again")
    assert made.stats().encoding is None
    assert made.has_unfinished_requests()
    found = run(made)
    assert found == {"other": alone(REQUESTS["other"])}
    assert made.stats().pictures_encoded == 1
    made.add_request(REQUESTS["first"])
    made.step()
    made.close()
    assert (made.request_ids(), made.has_unfinished_requests(), made.stats().encoding) == ([], False, None)
    assert made.step() == []


@pytest.mark.parametrize("where", ["start", "later"])
def test_a_picture_that_fails_ends_those_who_wait_for_it(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Encoding.advance

    def break_one(encoding: Encoding, max_rows: int) -> None:
        if encoding._pixels is PIXELS["a"] and (where == "start" or encoding.progress > 0.5):
            raise RuntimeError("broken")
        advance(encoding, max_rows)

    monkeypatch.setattr(Encoding, "advance", break_one)
    made = engine(**SLOW)
    for name in ("text", "first", "other", "both"):
        made.add_request(REQUESTS[name])
    found: dict[str, Answer] = {}
    failed = {}
    while made.has_unfinished_requests():
        outputs = made.step()
        failed |= {output.request_id: output for output in outputs if output.error is not None}
        take(found, [output for output in outputs if output.error is None])
    assert failed.keys() == {"first", "both"}
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
        while made.has_unfinished_requests():
            made.step()
    assert run(made) == {"first": alone(REQUESTS["first"])}


WRONG = {
    "in this model's prompts, not 11": replace(
        prompt("a"), spans=(MediaSpan(0, 11, "image", "a"),), pixels={"a": PIXELS["a"]}
    ),
    "an audio": replace(prompt("a"), spans=(MediaSpan(0, NUM_ROWS, "audio", "a"),)),
    "no pixels for its picture 'a'": replace(prompt("a"), pixels={"b": PIXELS["b"]}),
    "not uint8 [100, 224, 3]": replace(prompt("a"), pixels={"a": PIXELS["a"][:100]}),
    "not float32 [224, 224, 3]": replace(prompt("a"), pixels={"a": PIXELS["a"].astype(np.float32)}),  # type: ignore[dict-item]
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
