"""Help texts at terminals of several widths, and scripts for completion."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import terminal

from glm4.cli import main
from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import declared


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([name, "--help"] if name else ["--help"]) == 0
    shown, _, _ = capsys.readouterr().out.partition("\nExamples:")
    allowed = {line for line in shown.splitlines() if line.startswith("Usage:") or len(line.split()) <= 3}
    assert [line for line in shown.splitlines() if len(line) > columns and line not in allowed] == []
    if name:
        _, function = COMMANDS[name].load(name)
        for parameter in declared(function):
            for spelling in parameter.spellings or (parameter.metavar,):
                assert re.search(rf"^  (.*, )?{re.escape(spelling)}\b|^  {re.escape(spelling)}", shown, re.MULTILINE)


def test_help_has_panels_defaults_and_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    headings = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert headings == [
        "Arguments",
        "Options",
        "Engine",
        "Access",
        "Limits",
        "Logging and metrics",
        "Assistant",
        "Ray cluster",
        "Examples",
    ]
    assert "(default: 8000)" in shown
    assert "(default: GLM4_API_KEY)" in shown
    assert "(default: 300)" in shown
    assert main(["quantize", "--help"]) == 0
    assert "Usage: glm4 quantize [OPTIONS] MODEL --to FORMAT --output DIR\n" in capsys.readouterr().out
    assert main(["--help"]) == 0
    headings = re.findall(r"^(\w.*):$", capsys.readouterr().out, re.MULTILINE)
    assert headings == [*dict.fromkeys(row.panel for row in COMMANDS.values()), "Options"]


def test_help_is_styled_at_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal("chat", "--help", home=tmp_path) as program:
        assert program.wait() == 0
        styled, text = program._raw.decode(), program.shown
    with terminal("chat", "--help", home=tmp_path, NO_COLOR="1") as program:
        assert program.wait() == 0
        assert program._raw.decode() == text
    assert "\x1b[1mEngine:\x1b[0m" in styled
    assert "\x1b[36m-m, --model\x1b[0m MODEL" in styled
    assert main(["chat", "--help"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("glm4 ", {*COMMANDS, "--version", "--help"}),
        ("glm4 qu", {"quantize"}),
        ("glm4 chat --te", {"--temperature", "--tensor-parallel-size"}),
        ("glm4 chat -m x --plain --top", {"--top-p", "--top-k"}),
        ("glm4 quantize m --no", {"--no-calibrate"}),
        ("glm4 chat rep", set()),  # left to bash: file names
        ("glm4 nope --", set()),
    ],
)
def test_bash_completes(line: str, words: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed = " ".join(map(shlex.quote, line.split(" ")))
    asked = f'COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _glm4; echo "${{COMPREPLY[@]}}"'
    code = script("bash", capsys) + asked
    done = subprocess.run(["bash", "-uc", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == words


def test_zsh_completes_as_bash_does(capsys: pytest.CaptureFixture[str]) -> None:
    first, _, rest = script("zsh", capsys).partition("\n")
    assert first == "autoload -U +X compinit bashcompinit && compinit && bashcompinit"
    assert rest == script("bash", capsys)


def test_fish_completes_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    lines = script("fish", capsys).splitlines()
    if shutil.which("fish"):
        subprocess.run(["fish", "-n"], input="\n".join(lines), text=True, timeout=60, check=True)
    for name, row in COMMANDS.items():
        assert any(f" -a {name} " in line for line in lines)
        options = " ".join(line for line in lines if f"_from {name}'" in line)
        for parameter in declared(row.load(name)[1]):
            for spelling in parameter.spellings:
                assert f" {'-l' if spelling.startswith('--') else '-s'} {spelling.lstrip('-')} " in options
