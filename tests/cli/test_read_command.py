"""`glm4 read` as a program, with a tiny random model on the real engine, and with the starter."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import PROGRAM, environment, run, terminal

from glm4.cli.parameters import UsageError
from glm4.cli.parser import read as read_line
from glm4.cli.read import _files_and_question, read
from glm4.hub.store import home as real_home
from kv_stores import page_files
from pdf_files import PdfFile, lines, locked_pdf, tower_pdf
from tiny import write_folder
from vision_folder import write_vision_folder

LONG = ("--dtype", "fp32", "--context", "8000", "--temperature", "0", "--max-tokens", "4000")  # "Q?" is answered long
FAST = ("--dtype", "fp32", "--context", "2048", "--temperature", "0", "--max-tokens", "12")
SENTENCES = [f"Item {n} of the list costs {n * 7} euros and is made of wood." for n in range(40)]
LONG_TEXT = "\n\n".join(f"# Part {n}\n\n{line}" for n, line in enumerate(SENTENCES))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("The profit was 4 million euros. We are 312 people.")
    (folder / "b.md").write_text("# Notes\n\nThe bridge was built in 1911.")
    (folder / "long.md").write_text(LONG_TEXT)
    (folder / "pages.pdf").write_bytes(tower_pdf(3))
    return folder


def asked(model: str, *args: str, home: Path, cwd: Path, **changes: str) -> dict[str, Any]:
    """What `--json` prints."""
    done = run("read", "-m", model, *FAST, "--json", *args, home=home, cwd=cwd, **changes)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*args: str, home: Path, cwd: Path, **changes: str) -> tuple[int, str]:
    done = run("read", *args, home=home, cwd=cwd, **changes)
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode()


def test_a_question_is_answered(model: str, files: Path, tmp_path: Path) -> None:
    done = run("read", "-m", model, *FAST, "a.txt", "How much?", home=tmp_path, cwd=files)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert done.stdout.endswith(b"\n")
    found = asked(model, "a.txt", "How much?", home=tmp_path, cwd=files)
    assert found.keys() == {
        "answer", "raw", "citations", "sources", "strategy", "left_out", "finish_reason", "usage"
    }  # fmt: skip
    assert (found["strategy"], found["left_out"], found["finish_reason"]) == ("whole", [], "length")
    assert done.stdout.decode().startswith(found["answer"].lstrip("\n")[:5])
    assert b"cut off at its token limit" in done.stderr


def test_several_files_with_options_between_them(model: str, files: Path, tmp_path: Path) -> None:
    one = asked(model, "a.txt", "Q?", home=tmp_path, cwd=files)
    both = asked(model, "a.txt", "--seed", "1", "b.md", "--strategy", "whole", "Q?", home=tmp_path, cwd=files)
    assert both["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]
    twice = asked(model, "a.txt", "a.txt", "Q?", home=tmp_path, cwd=files)
    assert twice["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "args",
    [
        ["a", "b", "What?", "--json"],
        ["--json", "a", "b", "What?"],
        ["a", "--json", "b", "What?"],
        ["a", "b", "--json", "What?"],
        ["--json", "--", "a", "b", "What?"],
        ["a", "-m", "starter", "b", "--json", "--seed=3", "What?"],
    ],
)
def test_a_list_may_be_interrupted_by_options(args: list[str]) -> None:
    found = read_line(read, args)
    assert (found["words"], found["json_output"]) == (["a", "b", "What?"], True)


def test_a_question_may_look_like_an_option_or_be_long() -> None:
    assert read_line(read, ["a", "--", "-5?"])["words"] == ["a", "-5?"]
    with pytest.raises(UsageError, match="missing argument FILE"):
        read_line(read, [])
    with pytest.raises(UsageError, match="no such option: --strateg; did you mean --strategy"):
        read_line(read, ["a", "--strateg", "whole"])


def test_the_last_word_is_a_question_unless_it_is_a_file(files: Path) -> None:
    a, b = str(files / "a.txt"), str(files / "b.md")
    assert _files_and_question([a, b]) == ([Path(a), Path(b)], None)
    assert _files_and_question([a, "b.md?"]) == ([Path(a)], "b.md?")
    assert _files_and_question([a, "长" * 2000]) == ([Path(a)], "长" * 2000)  # longer than a name may be
    with pytest.raises(UsageError, match="the question is empty"):
        _files_and_question([a, " "])
    with pytest.raises(UsageError, match="is a folder"):
        _files_and_question([str(files), "?"])
    with pytest.raises(UsageError, match=r"there is no file 'c\.txt'"):
        _files_and_question([a, "c.txt", "?"])


def test_wrong_usage_is_said_before_a_model_is_loaded(files: Path, tmp_path: Path) -> None:
    nowhere = ("-m", "no-such-model")
    for args, said in (
        (("a.txt",), "a conversation needs a terminal"),
        (("a.txt", "b.md", "--json"), "a conversation needs a terminal"),
        (("a.txt", "Q", "--strategy", "half"), "--strategy is auto, whole, sections, summary, not 'half'"),
        (("c.txt", "Q"), "there is no file 'c.txt'"),
        (("Q?",), "there is no file 'Q?'"),
        (("a.txt", "Q", "--kv-store", "x", "--no-kv-store"), "contradict"),
        (("a.txt", "Q", "--temperature", "-1"), "temperature"),
    ):
        code, errors = refused(*nowhere, *args, home=tmp_path, cwd=files)
        assert code == 2, errors
        assert said in errors


def test_files_that_cannot_be_read(files: Path, tmp_path: Path) -> None:
    (files / "empty.txt").write_text("")
    (files / "broken.pdf").write_bytes(tower_pdf(2)[:200])
    (files / "secret.pdf").write_bytes(locked_pdf())
    (files / "noise.bin").write_bytes(bytes(range(256)) * 40)
    for name in ("empty.txt", "broken.pdf", "secret.pdf", "noise.bin"):
        code, errors = refused("-m", "no-such-model", name, "Q?", home=tmp_path, cwd=files)
        assert code == 2, (name, errors)
        assert f"error: {name} " in errors
    assert "password" in refused("-m", "x", "secret.pdf", "Q?", home=tmp_path, cwd=files)[1]


def test_a_file_in_gb18030(model: str, files: Path, tmp_path: Path) -> None:
    (files / "utf8.txt").write_text("银行在街角。它九点开门。" * 4, "utf-8")
    (files / "gb.txt").write_bytes(("银行在街角。它九点开门。" * 4).encode("gb18030"))
    one, two = (asked(model, name, "银行几点开门？", home=tmp_path, cwd=files) for name in ("utf8.txt", "gb.txt"))
    assert one["usage"]["prompt_tokens"] == two["usage"]["prompt_tokens"]
    assert one["answer"] == two["answer"]


def test_strategies_and_what_they_leave_out(model: str, files: Path, tmp_path: Path) -> None:
    found = asked(model, "long.md", "Which costs 49 euros?", "--context", "1024", home=tmp_path, cwd=files)
    assert found["strategy"] == "sections"
    assert found["left_out"][0].startswith("long.md: ")
    code, errors = refused(
        "-m", model, *FAST, "--context", "1024", "--strategy", "whole", "long.md", "Q?", home=tmp_path, cwd=files
    )
    assert code == 2
    assert "read it by sections or as a summary" in errors
    found = asked(
        model, "long.md", "x", "--strategy", "summary", "--context", "2048", home=tmp_path, cwd=files
    )  # fmt: skip
    assert (found["strategy"], found["left_out"]) == ("summary", [])


def test_without_a_sandbox_a_limited_process_reads_the_file(model: str, files: Path, tmp_path: Path) -> None:
    path = str(Path(sys.executable).parent)
    done = run("read", "-m", model, *FAST, "pages.pdf", "Q?", home=tmp_path, cwd=files, PATH=path)
    assert done.returncode == 0
    assert b"warning: files are read in a limited process instead of a sandbox: bubblewrap is not inst" in done.stderr


def test_ctrl_c_ends_a_single_answer(model: str, files: Path, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [*PROGRAM, "read", "-m", model, *LONG, "a.txt", "Q?"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, env=environment(tmp_path), cwd=files,
    )  # fmt: skip
    with program:
        assert program.stdout is not None
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert b"stopped" in errors
    assert b"Traceback" not in errors


def test_a_conversation_at_a_terminal(model: str, files: Path, tmp_path: Path) -> None:
    names = (str(files / "a.txt"), str(files / "b.md"))
    with terminal("read", "-m", model, *FAST, *names, home=tmp_path) as screen:
        screen.expect("a.txt, b.md: ")
        screen.expect(" tokens. Ask; /help helps, Ctrl-D ends.")
        screen.expect(">>> ")
        screen.send("How much?\r")
        screen.expect("the answer was cut off")
        screen.expect(">>> ")
        screen.send("And 你好?\r")
        screen.expect("the answer was cut off")
        screen.expect(">>> ")
        screen.send("\x03")
        screen.expect("Ctrl-C stops an answer")
        screen.expect(">>> ")
        screen.send("x" * 2100 + "\r")  # does not fit: the conversation goes on
        screen.expect("error: ")
        screen.expect(">>> ")
        screen.send("\x04")
        assert screen.wait() == 0
    assert "Traceback" not in screen.shown
    assert "How much?" in (tmp_path / "read_history").read_text()


def test_ctrl_c_at_a_terminal_stops_the_answer_and_not_the_program(model: str, files: Path, tmp_path: Path) -> None:
    with terminal("read", "-m", model, *LONG, str(files / "a.txt"), home=tmp_path) as screen:
        screen.expect(">>> ")
        screen.send("Q?\r")
        screen.expect("reading ")
        screen.send("\x03")
        screen.expect("stopped")
        screen.expect(">>> ")
        screen.send("/exit\r")
        assert screen.wait() == 0


def test_the_second_process_finds_what_the_first_has_read(model: str, files: Path, tmp_path: Path) -> None:
    first = asked(model, "long.md", "Q?", "--context", "8000", home=tmp_path, cwd=files)
    second = asked(model, "long.md", "Another?", "--context", "8000", home=tmp_path, cwd=files)
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["cached_tokens"] > 0.95 * second["usage"]["prompt_tokens"]
    assert page_files(tmp_path / "kv")
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0
    other = asked(model, "long.md", "Q?", "--context", "8000", "--no-kv-store", home=tmp_path, cwd=files)
    assert other["usage"]["cached_tokens"] == 0
    own = asked(model, "long.md", "Q?", "--context", "8000", "--kv-store", "own", home=tmp_path, cwd=files)
    assert own["usage"]["cached_tokens"] == 0
    assert page_files(files / "own")


def test_after_kill_9_while_writing_the_next_process_goes_on(model: str, files: Path, tmp_path: Path) -> None:
    options = ("--context", "8000", "--kv-store-dtype", "native")
    plain = asked(model, "long.md", "Q?", *options[:2], "--no-kv-store", home=tmp_path, cwd=files)
    args = ("read", "-m", model, *LONG, *options, "long.md", "Q?")
    program = subprocess.Popen([*PROGRAM, *args], stdout=subprocess.DEVNULL, env=environment(tmp_path), cwd=files)
    deadline = time.monotonic() + 100
    while program.poll() is None and not page_files(tmp_path / "kv") and time.monotonic() < deadline:
        time.sleep(0.001)
    program.kill()
    program.wait()
    assert page_files(tmp_path / "kv")
    found = asked(model, "long.md", "Q?", *options, home=tmp_path, cwd=files)
    assert 0 < found["usage"]["cached_tokens"] < found["usage"]["prompt_tokens"]
    assert found["answer"] == plain["answer"]


def test_a_home_that_cannot_be_written_is_a_warning(model: str, files: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "home"
    blocked.mkdir()
    (blocked / "kv").write_text("not a folder")
    done = run("read", "-m", model, *FAST, "a.txt", "Q?", home=blocked, cwd=files)
    assert done.returncode == 0
    assert b"warning: what is read is not kept for the next question" in done.stderr


@pytest.mark.starter
def test_the_starter_answers_and_cites_the_page(files: Path) -> None:
    done = run(
        "read", "-m", "starter", "--temperature", "0", "--no-kv-store", "--json", "pages.pdf",
        "How high is tower number 2?", home=real_home(), cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert "52" in found["answer"]
    assert [source["page"] for source in found["sources"]] == [2]
    (citation,) = found["citations"]
    assert "52" in found["answer"][citation["start"] : citation["end"]]


def test_scanned_pages_are_read_by_models_that_see(model: str, files: Path, tmp_path: Path) -> None:
    (files / "scan.pdf").write_bytes(bytes(PdfFile([lines(["Some text on the first page."]), None])))
    (files / "only.pdf").write_bytes(bytes(PdfFile([None])))
    blind = run("read", "-m", model, *FAST, "scan.pdf", "Q?", home=tmp_path, cwd=files)
    assert blind.returncode == 0
    assert b"scan.pdf: page 2 without text: pictures, which only a model that sees can read\n" in blind.stderr
    code, errors = refused("-m", model, *FAST, "only.pdf", "Q?", home=tmp_path, cwd=files)
    assert code == 2
    assert "page 1 without text: pictures, which only a model that sees can read" in errors
    assert "error: the documents have no text that could be read" in errors
    sees = str(write_vision_folder(tmp_path / "sees"))
    done = run("read", "-m", sees, *FAST, "scan.pdf", "Q?", home=tmp_path, cwd=files)
    assert done.returncode == 0, done.stderr.decode()
    assert b"scan.pdf: page 2 without text: the model has read the pictures, and may err\n" in done.stderr
