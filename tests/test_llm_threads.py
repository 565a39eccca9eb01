"""Several threads and one `LLM`: each gets its own answers, and what they ask at the same time is one batch."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapter_files import factors, write_adapter
from glm4 import LLM, Glm4Error, SamplingParams
from glm4.backends.local import LocalBackend
from glm4.errors import InternalError, InvalidRequestError, ModelClosedError
from glm4.outputs import RequestOutput
from stepped import until
from tiny import write_folder

GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
LONG = GREEDY.replace(max_tokens=200)
TEXTS = [f"question {number} of a thread" for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="fp32", max_model_len=256, max_num_seqs=8) as made:
        yield made
        assert not made.has_unfinished_requests()
        assert made.stats().num_running == made.stats().num_waiting == made.stats().kv_pages_used == 0
        assert not made._requests._turns.taken


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        yield pool


def backend_of(llm: LLM) -> LocalBackend:
    assert isinstance(llm.backend, LocalBackend)
    return llm.backend


def ids(output: RequestOutput) -> list[int]:
    assert output.error is None
    return output.outputs[0].token_ids


def ask(llm: LLM, text: str, params: SamplingParams = GREEDY) -> list[int]:
    return ids(llm.generate(text, params)[0])


@contextmanager
def everybody_waits(llm: LLM, count: int) -> Iterator[None]:
    """Threads started inside have all asked for their turn at the end."""
    turns = llm._requests._turns
    with turns:
        yield
        until(lambda: len(turns._queue) == count + 1, "the threads wait")


def on_step(llm: LLM, patch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """Call something after every step, with the number of the step, on the thread that made it."""
    step, counted = backend_of(llm).engine.step, [0]

    def stepped() -> Any:
        outputs = step()
        counted[0] += 1
        action(counted[0])
        return outputs

    patch.setattr(backend_of(llm).engine, "step", stepped)


def test_threads_get_their_own_answers_from_one_batch(
    llm: LLM, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [ask(llm, text) for text in TEXTS]
    steps: list[int] = []
    on_step(llm, monkeypatch, steps.append)
    with everybody_waits(llm, len(TEXTS)):
        answers = [threads.submit(ask, llm, text) for text in TEXTS]
    assert [answer.result(60) for answer in answers] == expected
    assert len(steps) < 2 * 30, "about as many steps as one request takes, not six times as many"


def test_streams_chats_and_embeddings_on_threads_of_their_own(llm: LLM, threads: ThreadPoolExecutor) -> None:
    chat = [{"role": "user", "content": "hello"}]
    vector, answer = llm.embed("a text")[0].embedding.tolist(), ids(llm.chat(chat, GREEDY)[0])
    expected = [ask(llm, text) for text in TEXTS]

    def stream(text: str) -> list[int]:
        return [token for chunk in llm.stream_generate(text, GREEDY) for token in chunk.token_ids]

    for _ in range(5):
        streams = [threads.submit(stream, text) for text in TEXTS[:3]]
        vectors = threads.submit(lambda: llm.embed(["a text"] * 3))
        chats = threads.submit(llm.chat, [chat, chat], GREEDY)
        assert [one.result(60) for one in streams] == expected[:3]
        assert [one.embedding.tolist() for one in vectors.result(60)] == [vector] * 3
        assert [ids(output) for output in chats.result(60)] == [answer] * 2


def test_an_error_in_one_thread_is_its_own(llm: LLM, threads: ThreadPoolExecutor) -> None:
    expected = ask(llm, TEXTS[0], LONG)

    def fail(*_: object) -> None:
        for _chunk in llm.stream_generate(TEXTS[1], LONG):
            raise ZeroDivisionError

    with everybody_waits(llm, 3):
        fine = threads.submit(ask, llm, TEXTS[0], LONG)
        failing = threads.submit(fail)
        refused = threads.submit(ask, llm, TEXTS[2], GREEDY.replace(stop_token_ids=[10**6]))
    assert fine.result(60) == expected
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
    with pytest.raises(InvalidRequestError):
        refused.result(60)


def test_a_failing_step_ends_the_requests_of_all_threads(
    llm: LLM, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(backend_of(llm).engine.scheduler, "schedule", fail)
        with everybody_waits(llm, 2):
            asked = [threads.submit(ask, llm, text) for text in TEXTS[:2]]
        errors = [type(one.exception(60)) for one in asked]
    assert sorted(errors, key=str) == [ZeroDivisionError, InternalError]
    assert len(ask(llm, "go on")) == 30


def test_abort_from_another_thread(llm: LLM, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = llm.stream_generate(TEXTS[0], LONG)
    first = next(stream)
    threads.submit(llm.abort, first.request_id).result(60)
    assert list(stream) == []

    def abort(number: int) -> None:
        if number == 5:
            threads.submit(llm.abort, next(iter(llm._requests._running))).result(60)

    on_step(llm, monkeypatch, abort)
    with pytest.raises(Glm4Error, match="aborted"):
        ask(llm, TEXTS[1], LONG)


def test_an_abandoned_stream_is_collected_in_the_middle_of_a_step(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector runs its finalizer on the thread that has the turn: it must neither wait nor change the batch."""
    expected = ask(llm, TEXTS[0])
    stream = llm.stream_generate(TEXTS[1], LONG)
    next(stream)
    holder: list[Any] = [stream]
    holder.append(holder)  # only the collector gets at it
    del stream
    gc.disable()
    forward, running = backend_of(llm).model.forward, list[int]()

    def collecting(*args: Any) -> Any:
        if holder:
            holder.clear()
            gc.collect()
            running.append(llm.stats().num_running)
        return forward(*args)

    try:
        monkeypatch.setattr(backend_of(llm).model, "forward", collecting)
        assert ask(llm, TEXTS[0]) == expected
    finally:
        gc.enable()
    assert running == [2], "it ends after the step, not within it"


def test_nested_use_on_one_thread(llm: LLM) -> None:
    expected = [ask(llm, text) for text in TEXTS[:3]]
    inner: list[list[int]] = []

    def requests() -> Iterator[tuple[str, Any]]:
        inner.append(ask(llm, TEXTS[1]))
        yield "outer", llm.prepare_prompt(TEXTS[0], GREEDY)

    for output in llm.run(requests()):
        assert ids(output) == expected[0]
    for _, chunk in zip(range(3), llm.stream_generate(TEXTS[0], GREEDY), strict=False):
        inner.append(ask(llm, TEXTS[2]))
        assert chunk.output is None
    assert inner == [expected[1], *[expected[2]] * 3]


def test_adapters_come_and_go_while_threads_ask(llm: LLM, threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a", factors(backend_of(llm).model.config, 1)))
    expected = [ask(llm, text) for text in TEXTS[:3]]
    asked = [threads.submit(ask, llm, text) for text in TEXTS[:3] for _ in range(4)]
    for number in range(5):
        llm.load_adapter(f"a{number}", path)
        assert ids(llm.generate(TEXTS[0], GREEDY, adapter=f"a{number}")[0]) != expected[0]
        llm.unload_adapter(f"a{number}")
    assert [one.result(60) for one in asked] == [one for one in expected for _ in range(4)]


def test_close_from_another_thread_ends_what_runs(folder: Path, threads: ThreadPoolExecutor) -> None:
    llm = LLM(str(folder), dtype="fp32", max_model_len=4096)
    endless = SamplingParams(max_tokens=4000, ignore_eos=True)
    asked: list[Future[Any]] = [threads.submit(ask, llm, text, endless) for text in TEXTS[:3]]
    stream = llm.stream_generate(TEXTS[3], endless)
    next(stream)
    threads.submit(llm.close).result(60)
    with pytest.raises(ModelClosedError, match="closed"):
        for _ in stream:
            pass
    for one in asked:
        assert isinstance(one.exception(60), ModelClosedError)


def test_ctrl_c_in_the_middle_of_a_step_leaves_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = ask(llm, TEXTS[0]), backend_of(llm).model
    logits = model.logits

    def interrupted(hidden: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(llm, TEXTS[0])
    assert llm.stats().kv_pages_used == 0
    assert model.logits == logits
    assert ask(llm, TEXTS[0]) == expected


def test_ctrl_c_in_the_main_thread_disturbs_no_other(
    llm: LLM, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(llm, TEXTS[0], LONG)

    def interrupt(number: int) -> None:
        if number == 10:  # whichever thread is in the step, the main thread's call ends
            os.kill(os.getpid(), signal.SIGINT)

    on_step(llm, monkeypatch, interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with everybody_waits(llm, 1):
            other = threads.submit(ask, llm, TEXTS[0], LONG)
        with pytest.raises(KeyboardInterrupt):
            ask(llm, TEXTS[1], LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert other.result(60) == expected
