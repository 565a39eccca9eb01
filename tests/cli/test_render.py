"""Live Markdown: what is printed for good, what is still redrawn, and that the end result is the whole answer."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from glm4.chat.events import ReasoningDelta, TextDelta, ToolCallDelta
from glm4.cli.console import printable
from glm4.cli.conversation import markdown
from glm4.cli.conversation.markdown import ChatMarkdown, MarkdownView, blocks, finished_length
from glm4.cli.conversation.render import PlainView

ANSWER = """# Title

First paragraph
with two lines.

- one
- two

  still two

```python
def f():

    return "<b>"
```

| a | b |
|---|---|
| 1 | 2 |

The end.
"""


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rendered(markdown: str, width: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(ChatMarkdown(markdown))
    return written(console)


def test_finished_blocks_never_change_and_are_whole_blocks() -> None:
    assert finished_length("one\n\ntwo") == 0  # the second line may still become anything
    assert ANSWER[: finished_length(ANSWER)].endswith("| 1 | 2 |\n\n")
    assert finished_length("- a\n\n- b\n\n") == 0  # one list, still open


def test_blocks_are_the_text_again() -> None:
    parts = blocks(ANSWER)
    assert "".join(parts) == ANSWER
    assert [part.split()[0] for part in parts] == ["#", "First", "-", "```python", "|", "The"]
    assert blocks("") == [""]
    assert blocks("\n\na\n\nb") == ["\n\na\n\n", "b"]


def test_one_empty_line_between_blocks_of_any_kind() -> None:
    console = terminal(height=60)
    with MarkdownView(console) as view:
        view.show([TextDelta(ANSWER.replace("Title\n\n", "Title\n"))])
    shown = "\n".join(screen_text(written(console))).strip("\n")
    assert "\n\n\n" not in shown.replace("\n\n    return", "\n    return")
    assert shown.count("\n\n") == 6  # between six blocks, and inside the code
    assert shown.startswith("Title\n\nFirst paragraph\nwith two lines.\n\n • one")


def test_an_unclosed_code_block_stays_open() -> None:
    text = "intro\n\n```\na\n\nb\n\nc\n"
    assert text[: finished_length(text)] == "intro\n\n"


@given(
    st.lists(
        st.sampled_from(["a", " b", "\n", "\n\n", "- ", "```\n", "# ", "> ", "1. ", "    ", "---\n", "|"]), max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_splitting_while_the_text_grows_gives_the_same_blocks(pieces: list[str]) -> None:
    committed, pending = [], ""
    for piece in pieces:
        pending += piece
        end = finished_length(pending)
        committed.append(pending[:end])
        pending = pending[end:]
    assert "".join([*committed, pending]) == "".join(pieces)
    separately = "".join(rendered(part) for part in [*committed, pending])
    together = rendered("".join(pieces))
    # Link definitions aside (none here), blocks do not depend on what stood before them.
    assert separately.split() == together.split()


def test_html_is_shown_and_line_breaks_are_kept() -> None:
    shown = rendered("use <div> here\n\n<p>block</p>")
    assert "use <div> here" in shown
    assert "<p>block</p>" in shown
    lines = [line.rstrip() for line in rendered("roses\nviolets").splitlines()]
    assert lines == ["roses", "violets"]


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b31mc\td\n\r") == "a[2Jb31mc\td\n"


def terminal(height: int = 10) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=40, height=height, color_system=None, legacy_windows=False
    )


def screen_text(raw: str, width: int = 40) -> list[str]:
    """What a terminal with endless scrollback shows after these bytes: cursor-up and erase-line, as Live uses them."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(raw):
        if raw.startswith("\x1b[", at):
            end = at + 2
            while not raw[end].isalpha():
                end += 1
            count = int(raw[at + 2 : end]) if raw[at + 2 : end].isdigit() else 1
            if raw[end] == "A":
                row -= count
            elif raw[end] == "K":
                lines[row] = ""
            at = end + 1
            continue
        if raw[at] == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif raw[at] == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + raw[at] + lines[row][column + 1 :]
            column += 1
        at += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_whole_answer_stands_on_the_screen_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(markdown, "_REFRESH_SECONDS", 0.0)
    console = terminal()
    with MarkdownView(console) as view:
        for start in range(0, len(ANSWER), size):
            view.show([TextDelta(ANSWER[start : start + size])])
    shown = [line for line in screen_text(written(console)) if line]
    expected = [line.rstrip() for line in rendered(ANSWER, width=40).splitlines() if line.strip()]
    assert shown == expected


def test_a_block_taller_than_the_screen_is_complete_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_REFRESH_SECONDS", 0.0)
    console = terminal(height=6)
    code = "```\n" + "".join(f"line {number}\n" for number in range(40)) + "```\n"
    with MarkdownView(console) as view:
        for line in code.splitlines(keepends=True):
            view.show([TextDelta(line)])
    shown = [line.strip() for line in screen_text(written(console)) if line.strip()]
    assert shown == [f"line {number}" for number in range(40)]


def test_reasoning_comes_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_REFRESH_SECONDS", 0.0)
    console = terminal()
    with MarkdownView(console) as view:
        view.show([ReasoningDelta("hm *not markdown*")])
        view.show([ReasoningDelta(" ok\n"), TextDelta("**Yes**")])
    shown = [line for line in screen_text(written(console)) if line]
    assert shown == ["hm *not markdown* ok", "Yes"]


def test_plain_output_is_exactly_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        view.show([ReasoningDelta("hidden"), TextDelta("a **b**\x1b[1m"), TextDelta("\n\n c")])
    assert capsys.readouterr().out == "a **b**\x1b[1m\n\n c\n"


def test_plain_output_adds_no_second_newline(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        view.show([TextDelta("a\n")])
    with PlainView() as view:
        view.show([ToolCallDelta(0, "id", "weather", '{"city"'), ToolCallDelta(0, arguments=": 1}")])
    assert capsys.readouterr().out == 'a\nweather {"city": 1}\n'


def test_a_plain_answer_loads_no_markdown() -> None:
    """No clock: what makes a start slow is what it loads."""
    modules = "glm4.cli.conversation.answer, glm4.cli.chat, glm4.cli.conversation.view as view, glm4.llm"
    code = f"import sys, {modules}; view.make_view(plain=True)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('\\n'.join(sys.modules))"], capture_output=True, text=True, check=True
    )
    unneeded = {"markdown_it", "rich.markdown", "rich.syntax", "rich.live", "pygments", "huggingface_hub", "modelscope"}
    assert not unneeded & set(done.stdout.split())
