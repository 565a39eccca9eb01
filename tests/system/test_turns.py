"""`Turns`: in order, one at a time, and nothing that happens at a bad moment leaves it locked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from glm4.system.turns import Turns
from stepped import until


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Ctrl-C as in any program; a runner of tests may have turned it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "left as it was found"


def test_in_the_order_in_which_they_asked() -> None:
    turns, order, threads = Turns(), list[int](), list[threading.Thread]()

    def work(number: int) -> None:
        for _ in range(3):
            with turns:
                order.append(number)

    with turns:
        for number in range(4):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            until(lambda: len(turns._queue) == len(threads) + 1, "the thread waits")
    for thread in threads:
        thread.join()
    assert order[:4] == [0, 1, 2, 3]
    assert sorted(order) == sorted(list(range(4)) * 3)
    assert not turns.taken


def test_what_is_posted_runs_now_or_at_the_end_of_the_turn() -> None:
    turns, done = Turns(), list[str]()

    def later() -> None:
        done.append("later")
        turns.post(lambda: done.append("last"))

    turns.post(lambda: done.append("now"))
    with turns:
        turns.post(later)
        thread = threading.Thread(target=turns.post, args=(lambda: done.append("another thread's"),))
        thread.start()
        thread.join()  # does not wait for the turn
        assert done == ["now"]
    assert done == ["now", "later", "another thread's", "last"]
    with suppress(ZeroDivisionError), turns:
        turns.post(lambda: done.append("after an error"))
        raise ZeroDivisionError
    assert done[-1] == "after an error"
    assert not turns.taken


def test_a_thread_that_has_the_turn_is_told_so() -> None:
    turns = Turns()
    with turns, pytest.raises(RuntimeError, match="same thread"):
        turns.__enter__()
    with turns:
        pass


def test_an_interrupt_waits_for_the_end_of_the_turn_unless_it_is_the_third() -> None:
    turns, reached = Turns(), list[int]()
    with pytest.raises(KeyboardInterrupt), turns:  # noqa: PT012 (what is shown is that the block goes on)
        turns.hold_back_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(1)
    assert reached == [1]
    with pytest.raises(KeyboardInterrupt), turns:  # noqa: PT012
        turns.hold_back_interrupts()
        for number in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(number)
    assert reached == [1, 0, 1]
    assert not turns.taken


def test_an_interrupted_wait_gives_up_its_place() -> None:
    turns, held, release = Turns(), threading.Event(), threading.Event()

    def hold() -> None:
        with turns:
            turns.hold_back_interrupts()  # nothing, on a thread that no interrupt can reach
            held.set()
            until(lambda: len(turns._queue) == 2, "the main thread waits")
            os.kill(os.getpid(), signal.SIGINT)
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(KeyboardInterrupt):
        turns.__enter__()
    assert len(turns._queue) == 1
    release.set()
    holder.join()
    with turns:
        assert len(turns._queue) == 1


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    seen = list[int]()
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    turns = Turns()
    with turns:
        turns.hold_back_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)
