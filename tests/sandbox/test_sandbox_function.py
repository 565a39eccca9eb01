"""`run_function`: a function that works, and functions that somebody has taken over."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandboxes import marker, running

from glm4.errors import MissingExtraError, SandboxError, SandboxUnavailableError
from glm4.sandbox import launch
from glm4.sandbox.function import run_function
from glm4.sandbox.limits import Limits

MIB = 1 << 20
LIMITS = Limits(memory_nbytes=256 * MIB)
PACKAGES = ("hostile_functions",)


@pytest.fixture(autouse=True)
def here() -> None:
    reason = launch.unavailable()
    if reason is not None:
        pytest.skip(reason)


def call(name: str, argument: bytes = b"", **options: float) -> bytes:
    seconds, most = options.get("seconds", 100.0), int(options.get("max_nbytes", 64 * MIB))
    return run_function(
        f"hostile_functions:{name}", argument, limits=LIMITS, seconds=seconds, packages=PACKAGES, max_nbytes=most
    )


def test_a_result_is_the_functions() -> None:
    large = bytes(range(256)) * 16384
    assert call("reverse", large) == large[::-1]
    assert call("reverse", b"") == b""
    assert call("print_and_return", b"result") == b"result"
    assert call("leave_a_thread", b"result") == b"result"


def test_functions_of_this_package_run() -> None:
    with pytest.raises(SandboxError, match="it failed") as caught:  # no picture
        run_function("glm4.multimodal.image_decode:decode", b"not a picture")
    assert caught.value.cause == "failure"


def test_a_function_sees_nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_TEST_SECRET", "secret")
    (tmp_path / "secret").write_text("secret")
    root, names, there, user = call("look", str(tmp_path / "secret").encode()).decode().split("\n")
    assert "home" not in root.split(",")
    assert set(names.split(",")) <= {
        "PATH",
        "HOME",
        "LANG",
        "PWD",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "LC_CTYPE",
        "OLDPWD",
        "SHLVL",
        "_",
    }
    assert there == "False"
    assert user == "1000"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("grow", "memory"),
        ("grow_in_children", "memory"),
        ("crash", "failure"),
        ("recurse", "failure"),
        ("lie_about_size", "failure"),
        ("not_bytes", "failure"),
        ("missing", "failure"),
    ],
)
def test_a_function_that_fails_says_so(name: str, cause: str) -> None:
    with pytest.raises(SandboxError) as caught:
        call(name)
    assert caught.value.cause == cause


@pytest.mark.parametrize("name", ["sleep", "close_and_stay", "spin"])
def test_time_ends(name: str) -> None:
    with pytest.raises(SandboxError) as caught:
        call(name, seconds=1.5)
    assert caught.value.cause == "time"


def test_processor_time_ends() -> None:
    with pytest.raises(SandboxError) as caught:
        run_function(
            "hostile_functions:spin", b"", limits=Limits(cpu_seconds=1), seconds=100, packages=PACKAGES
        )  # fmt: skip
    assert caught.value.cause == "time"


def test_an_argument_that_is_not_read_is_no_trap() -> None:
    """Larger than a pipe, while the program never starts to read: its module sleeps."""
    with pytest.raises(SandboxError) as caught:
        run_function("hostile_sleep:sleep", bytes(8 * MIB), seconds=1.5, packages=("hostile_sleep",))
    assert caught.value.cause in ("time", "failure")


def test_a_flood_ends_at_the_bound() -> None:
    for name, most in (("flood", MIB), ("first_byte_of_much", 8 * MIB - 1)):
        with pytest.raises(SandboxError, match="larger than") as caught:
            call(name, b"x", max_nbytes=most)
        assert caught.value.cause == "failure"
    assert len(call("first_byte_of_much", b"x", max_nbytes=8 * MIB)) == 8 * MIB


def test_errors_are_one_short_line_without_controls() -> None:
    with pytest.raises(SandboxError) as caught:
        call("escape")
    assert "last line" in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(SandboxError, match="the last line") as caught:
        call("flood_errors")
    assert len(str(caught.value)) < 1200


def test_nothing_is_left_of_it() -> None:
    word = marker()
    with pytest.raises(SandboxError):
        run_function(f"hostile_functions:{word}", b"", packages=PACKAGES)
    with pytest.raises(SandboxError):
        call("grow_in_children")
    assert running(word) == []
    assert running("hostile_functions") == []


@pytest.mark.parametrize("name", ["os:getcwd", "subprocess:run", "glm4x:run", "hostile:x", ""])
def test_only_our_own_functions_are_called(name: str) -> None:
    with pytest.raises(ValueError, match="no function of this package"):
        run_function(name, b"")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingExtraError, match="no_such_package"):
        run_function("glm4.documents:x", b"", packages=("no_such_package",))


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("without_bubblewrap")
def test_nothing_runs_without_bubblewrap() -> None:
    with pytest.raises(SandboxUnavailableError, match="apt install bubblewrap"):
        call("reverse", b"x")
    reason = launch.unavailable()
    assert reason is not None
    assert "bubblewrap is not installed" in reason
