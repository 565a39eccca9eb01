"""A picture is encoded once: for all who wait for it, and for those who ask about it later."""

from __future__ import annotations

import pytest
from seeing import (
    REQUESTS,
    ROW_NBYTES,
    SLOW,
    Answer,
    alone,
    ask,
    engine,
    prompt,
    run,
    take,
    words,
)


@pytest.mark.parametrize("kept", [0, 16 * ROW_NBYTES])
def test_one_picture_of_several_requests_is_encoded_once(kept: int) -> None:
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


def test_pages_of_a_picture_are_enough() -> None:
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
