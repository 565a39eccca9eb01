"""The command line as a whole: help, exit codes, and that no traceback ever reaches a user."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from glm4 import __version__, cli, errors
from glm4.cli import console, main
from glm4.cli.commands import COMMANDS, CommandRow
from glm4.cli.parameters import Exit, UsageError
from glm4.cli.parser import read
from glm4.errors import Glm4Error


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "glm4", *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `boom` whose module the tests fill."""
    module = types.ModuleType("glm4_boom")
    monkeypatch.setitem(sys.modules, "glm4_boom", module)
    monkeypatch.setitem(COMMANDS, "boom", CommandRow("glm4_boom", "Run a model", "Fails."))
    return module


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from glm4.cli import main; code = main(['--help']);"
        "heavy = {'numpy', 'tokenizers', 'tiktoken', 'jinja2', 'huggingface_hub', 'prompt_toolkit', 'glm4.llm'};"
        "parts = ('parser', 'mistakes', 'commands', 'console', 'parameters', 'help_texts');"
        "parts = {f'glm4.cli.{name}' for name in parts};"
        "ours = {name for name in sys.modules if name.startswith('glm4.cli.')} - parts;"
        "loaded = heavy & set(sys.modules) | ours;"
        "print(sorted(loaded), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for name, row in COMMANDS.items():
        assert re.search(rf"\b{name}\b +{re.escape(row.summary[:30])}", done.stdout)


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [(main(args), capsys.readouterr().out) for args in ([], ["--help"], ["-h"])]
    assert shown[0] == shown[1] == shown[2]
    assert shown[0][1].startswith("Usage: glm4 ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"glm4 {__version__}\n"


def test_the_version_needs_no_parser_of_help_texts() -> None:
    code = (
        "import sys; from glm4.cli import main; main(['--version']);"
        "print({'argparse', 'rich', 'glm4.cli.console', 'json'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"glm4 {__version__}\nset()\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    module, function = COMMANDS[name].load(name)
    examples = module.EXAMPLES.strip().splitlines()
    assert examples
    assert "Examples:" in shown
    for example in examples:
        assert f"  {example}\n" in shown
        line = example.removeprefix('eval "$(').removesuffix(')"').partition(" < ")[0].partition(" > ")[0]
        program, subcommand, *args = shlex.split(line, comments=True)
        assert (program, subcommand) == ("glm4", name)
        read(function, args)  # refuses options that do not exist


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["chta"], "error: no such command 'chta'; did you mean chat?\n", "glm4 --help"),
        (["run", "starter"], "error: no such command 'run'; here it is `glm4 chat`\n", "glm4 --help"),
        (["--nope"], "error: no such option: --nope\n", "glm4 --help"),
        (["chat", "--nope"], "error: no such option: --nope\n", "glm4 chat --help"),
        (["chat", "--temprature=1"], "error: no such option: --temprature; did you mean --temperature?\n", "--help"),
        (["chat", "--ctx-size", "9"], "error: no such option: --ctx-size; here it is --context\n", ""),
        (
            ["generate", "-ngl", "99", "hi"],
            "error: no such option: -ngl; our own engine runs on the CPU; ",
            "",
        ),
        (["info", "--ctx-size", "9"], "error: no such option: --ctx-size\n", ""),
        (["chat", "how", "are", "you"], "error: unexpected argument 'are'; a text with spaces needs quotes\n", ""),
        (["batch"], "error: missing argument IN.jsonl\n", "glm4 batch --help"),
        (["quantize", "m", "--to", "int4"], "error: missing option --output\n", ""),
        (["chat", "-m"], "error: option '--model' needs a value\n", ""),
        (["serve", "-tp", "2"], "error: the local backend has no option 'tensor_parallel_size'; it ", ""),
        (["serve", "-dp", "2"], "error: copies of a model are servers of their own; start", ""),
        (["chat", "--engine-args", "[1]", "hi"], "error: --engine-args takes a JSON object, such as", ""),
        (["chat", "--engine-args", '{"backend": "vllm"}', "hi"], "error: --engine-args has 'backend', which has", ""),
        (
            ["chat", "--dtype", "int4", "--engine-args", '{"dtype": "int8"}', "hi"],
            "error: --engine-args has ",
            "",
        ),
        (["chat", "--engine-args", '{"dtpye": 1}', "hi"], "error: the local backend has no option 'dtpye'; it has", ""),
        (["bench", "--backend", "remote", "--random", "glm-4-9b"], "error: --random is for the local backend", ""),
        (["chat", "--dtype", "half", "hi"], "error: --dtype half is not a weight format of this engine: bf16", ""),
        (["completion", "csh"], "error: completion is for bash, zsh and fish, not 'csh'\n", ""),
        (["chat", "--max-tokens", "x", "hi"], "error: invalid value", "glm4 chat --help"),
        (["chat", "--max-tokens", "0", "hi"], "error: invalid value", "glm4 chat --help"),
        (["chat", "--temperature", "-1", "hi"], "error: temperature must be", ""),
        (["chat", " "], "error: ", "glm4 chat --help"),
        (["chat", "--plain=1", "hi"], "error: option '--plain' does not take a value", "glm4 chat --help"),
        (["generate", "hi", "--logprobs", "3"], "error: ", "glm4 generate --help"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    args: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert hint in shown.err
    assert "Traceback" not in shown.err


ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Glm4Error)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_class_is_a_message(
    kind: type[Glm4Error], failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def boom() -> None:
        text = "what is [bold]wrong[/bold]\x1b]0;title\x07\nand what to do"
        raise errors.SandboxError("failure", text) if kind is errors.SandboxError else kind(text)

    failing.boom = boom
    assert main(["boom"]) == kind.exit_code
    assert capsys.readouterr().err == "error: what is [bold]wrong[/bold]]0;title\nand what to do\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "error: out of memory\nhint: "),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: a.txt: No such file or directory\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (ValueError("odd"), 1, "error: internal error: ValueError: odd\nhint: "),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (Exit(130), 130, ""),
        (UsageError("give one"), 2, "error: give one\nhint: `glm4 boom --help` shows the options\n"),
    ],
)
def test_other_exceptions(
    error: BaseException,
    code: int,
    message: str,
    failing: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boom() -> None:
        raise error

    monkeypatch.setattr(console, "silence_stdout", lambda: None)  # pytest wants its standard output back
    failing.boom = boom
    assert main(["boom"]) == code
    assert capsys.readouterr().err.startswith(message)


def test_an_interrupted_import_is_an_interruption(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """NumPy's import does this: a KeyboardInterrupt in C code becomes an ImportError without a trace of it."""

    def boom(interrupted: bool = True) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            if interrupted:
                signal.raise_signal(signal.SIGINT)
        try:
            raise ImportError("PyCapsule_Import could not import module")
        except ImportError as error:
            raise Glm4Error("the compiled kernels cannot be loaded") from error

    failing.boom = lambda: boom()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert main(["boom"]) == 130
        assert capsys.readouterr().err == "error: interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        failing.boom = lambda: boom(interrupted=False)
        assert main(["boom"]) == 1
        assert capsys.readouterr().err == "error: the compiled kernels cannot be loaded\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_debug_shows_the_traceback_wherever_it_stands(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom() -> None:
        raise ValueError("")

    failing.boom = boom
    for args in (["--debug", "boom"], ["boom", "--debug"]):
        with pytest.raises(ValueError, match=r"^$"):
            main(args)
    monkeypatch.setenv("GLM4_DEBUG", "1")
    with pytest.raises(ValueError, match=r"^$"):
        main(["boom"])


def test_debug_after_a_double_dash_is_an_argument() -> None:
    assert cli._take_debug(["chat", "--", "--debug"]) == (["chat", "--", "--debug"], False)
    assert cli._take_debug(["--debug", "chat", "--", "--debug"]) == (["chat", "--", "--debug"], True)


def test_an_unknown_model_is_exit_code_2_without_traceback() -> None:
    done = run("chat", "-m", "no/such/folder", "hi")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    code = f"{shlex.quote(sys.executable)} -m glm4 --help | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_version_that_cannot_be_written_is_an_error() -> None:
    code = f"{shlex.quote(sys.executable)} -m glm4 --version > /dev/full"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_help_is_utf8_in_the_c_locale() -> None:
    done = run("batch", "--help", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0
    assert "…" in done.stdout


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (491_400_064, "491 MB"), (1.9e10, "19.0 GB"), (2e15, "2000.0 TB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert console.human_bytes(count) == text


def test_human_duration() -> None:
    assert [console.human_duration(seconds) for seconds in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.PlainProgress, "interval", 0.0)
    with console.progress() as report:
        report("loading", 0, 10)
        report("loading", 5, 10)
        report("downloading", 0, 0)
        report("downloading", 2e6, 4e6)
    assert capsys.readouterr().err == "loading: 5/10 (50%)\ndownloading: 2.0 MB of 4.0 MB (50%)\n"


def test_command_line_arguments_become_valid_unicode() -> None:
    assert console.clean_text("a\udcffb 你好") == "a\ufffdb 你好"
