"""Calls in a helper process: what ends it costs one call, and the next one is answered."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator

import pytest

from glm4.system.helper import Helper, HelperError, Limits, call_with_stack

EVAL = "builtins:eval"
ENDINGS = {
    "depth": b"(lambda f: f(f))(lambda f: f(f))",
    "memory": b"bytearray(10**10)",
    "time": b"sum(range(10**12))",
    "failure": b"1 / 0",
}
CRASHES = {
    "depth": b"__import__('ctypes').string_at(0)",
    "memory": b"__import__('os').abort()",
    "failure": b"__import__('os')._exit(3)",
}


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    made = Helper(Limits(cpu_seconds=1, memory_bytes=256 << 20, stack_bytes=1 << 20))
    yield made
    made.close()


def test_results_of_any_size_come_back(helper: Helper) -> None:
    data = os.urandom(3_000_000)
    assert helper.call("builtins:bytes", data) == data
    assert helper.call("builtins:bytes", b"") == b""


@pytest.mark.parametrize(("cause", "expression"), [*ENDINGS.items(), *CRASHES.items()])
def test_whatever_ends_a_call_is_told_and_the_next_call_works(helper: Helper, cause: str, expression: bytes) -> None:
    with pytest.raises(HelperError) as caught:
        helper.call(EVAL, expression)
    assert caught.value.cause == cause
    assert helper.call(EVAL, b"b'fine'") == b"fine"


def test_a_process_that_was_about_to_end_is_replaced(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when idle, maybe in the moment of a call."""
    helper.call(EVAL, b"b''")
    process = helper._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = open(os.devnull, "wb", buffering=0)  # noqa: PTH123, SIM115
    process.wait(60)
    monkeypatch.setattr(process, "poll", iter([None, 0, 0, 0]).__next__)
    assert helper.call(EVAL, b"b'fine'") == b"fine"
    assert helper._process is not process


def test_time_counts_from_each_call(helper: Helper) -> None:
    """Half of the limit each: were they added up, the third would be too much."""
    busy = (
        b"[b'' for t in [__import__('time').process_time] for e in [t() + 0.5] for _ in iter(lambda: t() < e, False)]"
    )
    for _ in range(5):
        assert helper.call(EVAL, busy + b"[0]") == b""


def test_what_a_library_prints_does_not_disturb(helper: Helper) -> None:
    assert (
        helper.call(EVAL, b"(print('x' * 100000, flush=True), __import__('os').write(1, b'y'), b'fine')[2]") == b"fine"
    )


def test_it_shares_nothing_with_this_process(helper: Helper, tmp_path: os.PathLike[str]) -> None:
    """No inherited descriptor: a listening socket would stay open after the server."""
    with open(os.path.join(tmp_path, "x"), "w") as file:  # noqa: PTH118, PTH123
        os.set_inheritable(file.fileno(), True)
        fresh = Helper(Limits())
        names = fresh.call(EVAL, b"','.join(map(str, __import__('os').listdir('/proc/self/fd'))).encode()").decode()
        fresh.close()
    if sys.platform == "linux":
        assert len(names.split(",")) <= 8


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's way of choosing a process")
def test_it_is_the_first_to_end_when_memory_runs_out(helper: Helper) -> None:
    assert helper.call(EVAL, b"open('/proc/self/oom_score_adj', 'rb').read()") == b"1000\n"


def test_each_new_process_is_set_up(tmp_path: os.PathLike[str]) -> None:
    calls: list[int] = []

    def setup() -> tuple[str, bytes]:
        calls.append(1)
        return EVAL, b"(setattr(__import__('builtins'), 'prepared', b'yes'), b'')[1]"

    helper = Helper(Limits(cpu_seconds=1), setup)
    for _ in range(2):
        assert helper.call(EVAL, b"__import__('builtins').prepared") == b"yes"
        assert helper.call(EVAL, b"__import__('builtins').prepared") == b"yes"
        helper.close()
    assert len(calls) == 2


def test_the_process_ends_with_its_owner() -> None:
    helper = Helper(Limits())
    number = int(helper.call(EVAL, b"str(__import__('os').getpid()).encode()"))
    del helper
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_descriptors_beyond_what_select_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1400:
        pytest.skip("too few descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1400), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        helper = Helper(Limits())
        assert helper.call("builtins:bytes", b"abc") == b"abc"
        helper.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_call_with_more_stack() -> None:
    def fail() -> None:
        raise ValueError("mine")

    assert call_with_stack(lambda: 7, 16 << 20) == 7
    with pytest.raises(ValueError, match="mine"):
        call_with_stack(fail, 16 << 20)
    frames: Callable[[int], int] = lambda n: 0 if n == 0 else 1 + frames(n - 1)  # noqa: E731
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        assert call_with_stack(lambda: frames(15_000), 256 << 20) == 15_000
    finally:
        sys.setrecursionlimit(limit)
