"""`glm4 chat --tools`: the program at a terminal and in pipes, with functions of a user's file and a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_program import PROGRAM
from processes import Terminal, run, terminal

TOOLS = '''
import time
from glm4 import tool
from glm4.agent.tool import ToolContext

@tool
def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return "sunny in " + city

@tool(approval="ask")
def delete(name: str) -> str:
    """Delete a file."""
    return name + " is deleted"

@tool
def count(context: ToolContext) -> str:
    """Count slowly."""
    for number in range(3600):
        context.output(f"number {number}\\n")
        if context.cancelled.wait(1.0):
            return "stopped"
    return "counted"

@tool
def wait(context: ToolContext) -> str:
    """Wait without a word."""
    context.cancelled.wait(3600)
    return "waited"

@tool
def many() -> str:
    """Say much."""
    return "\\n".join(f"line {number} \\x1b[31m\\x07\\x9b" for number in range(40))

@tool
def draw(context: ToolContext) -> str:
    """Make a picture."""
    png = b"\\x89PNG\\r\\n\\x1a\\n" + b"\\0" * 40
    context.file(context.files.put("../plot \\x1b[31m.png", png))
    context.sources.add("A page\\x1b]0;x\\x07", url="https://example.org/")
    return "drawn"
'''


def call(function: str, /, **arguments: Any) -> str:
    return f"{function}\n{json.dumps(arguments)}<|observation|>"


class Chat:
    """Where programs run: a home, a file of tools, and the model's answers."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.tools = folder / "my_tools.py"
        self.tools.write_text(TOOLS)
        self._answers = folder / "answers.json"

    def answers(self, *answers: str) -> str:
        """The file with these answers."""
        self._answers.write_text(json.dumps(answers))
        return str(self._answers)

    def ask(self, answers: Sequence[str], *args: str, stdin: str = "") -> tuple[int, str, str]:
        """One question through pipes: exit code, standard output, standard error."""
        done = run(
            "chat", "--tools", str(self.tools), *args, "Question?",
            home=self.home, stdin=stdin, program=PROGRAM, ANSWERS=self.answers(*answers),
        )  # fmt: skip
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    @contextmanager
    def terminal(self, answers: Sequence[str], *args: str) -> Iterator[Terminal]:
        with terminal(
            "chat", "--tools", str(self.tools), *args, home=self.home, program=PROGRAM, ANSWERS=self.answers(*answers)
        ) as running:
            yield running


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    return Chat(tmp_path)


def test_the_answer_is_on_standard_output_and_the_steps_are_not(chat: Chat) -> None:
    answers = ["\nI look.<|assistant|>" + call("weather", city="Beijing"), "\nIt is sunny."]
    code, out, err = chat.ask(answers)
    assert code == 0
    assert out == "I look.\nIt is sunny.\n"
    assert '● weather {"city": "Beijing"}\n' in err
    assert "  │ sunny in Beijing\n" in err
    assert "✓ weather 0.0 s" in err


def test_a_call_that_is_not_run_is_shown_before_what_is_wrong_with_it(chat: Chat) -> None:
    _, _, err = chat.ask([call("weather", town="Beijing"), "\nSorry."])
    lines = [line for line in err.splitlines() if line.startswith(("●", "  │", "✗"))]
    assert lines[0] == '● weather {"town": "Beijing"}'
    assert "city is missing" in lines[1]
    assert lines[2] == "✗ weather failed"


def test_events_as_lines_of_json(chat: Chat) -> None:
    code, out, err = chat.ask([call("weather", city="Beijing"), "\nIt is sunny."], "--json")
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1] == {"type": "end", "status": "completed", "reason": "stop"}
    assert "".join(event["add"] for event in events if event["type"] == "text") == "It is sunny."
    changes = [event["state"] for event in events if event["type"] == "call" and event["state"] != "writing"]
    assert changes == ["running", "done"]
    assert "●" not in err


def test_json_without_tools_and_without_a_question(chat: Chat) -> None:
    done = run("chat", "--json", "Hello?", home=chat.home, program=PROGRAM, ANSWERS=chat.answers("\nHello."))
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "end"
    done = run("chat", "--json", home=chat.home, program=PROGRAM, ANSWERS=chat.answers("\nHello."))
    assert done.returncode == 2
    with terminal("chat", "--json", home=chat.home, program=PROGRAM, ANSWERS=chat.answers("\nHello.")) as running:
        running.expect("--json is for one question")
        assert running.wait() == 2


def test_files_are_saved_and_links_listed(chat: Chat) -> None:
    code, out, err = chat.ask([call("draw"), "\nHere【7†page】, and【9†unknown】."])
    assert code == 0
    assert out == "Here【7†page】, and【9†unknown】.\n\n[7] A page]0;x  https://example.org/\n"
    (saved,) = (chat.home / "chat_files").glob("*/*")
    assert saved.name == "plot _31m.png"
    assert saved.read_bytes().startswith(b"\x89PNG")
    assert f"  saved {saved}\n" in err


def test_a_file_of_the_user_is_for_the_model_and_the_tools(chat: Chat, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("The answer is 42.")
    code, out, _ = chat.ask(["\nIt is 42."], "--file", str(notes))
    assert (code, out) == (0, "It is 42.\n\n[7] notes.txt\n")
    prompt = (chat.home / "scripted" / "prompts.txt").read_text()
    assert "[File Name]\nnotes.txt\n[File Content]\n【7†notes.txt】\nThe answer is 42.\n" in prompt
    assert prompt.endswith("Question?<|assistant|>")
    code, out, err = chat.ask(["\nIt is 42."], "--file", str(tmp_path / "none.txt"))
    assert (code, out) == (2, "")
    assert "none.txt" in err


def test_a_saved_file_has_its_path_in_json(chat: Chat) -> None:
    _, out, _ = chat.ask([call("draw"), "\nHere."], "--json")
    (file,) = [json.loads(line) for line in out.splitlines() if '"type": "file"' in line]
    assert Path(file["path"]).read_bytes().startswith(b"\x89PNG")
    assert file["media_type"] == "image/png"


def test_long_output_is_folded_and_controls_nothing(chat: Chat) -> None:
    _, _, err = chat.ask([call("many"), "\nMuch.\x1b[31m"])
    assert "line 11" in err
    assert "line 12" not in err
    assert "  … 28 more lines\n" in err
    assert "\x1b" not in err
    with chat.terminal([call("many"), "\nMuch.\x1b]0;title\x07"], "--plain", "Question?") as running:
        running.expect("Much.]0;title")
        assert running.wait() == 0
        assert b"\x07" not in running._raw
        assert b"\xc2\x9b" not in running._raw


def test_without_a_terminal_nothing_is_approved(chat: Chat) -> None:
    code, out, err = chat.ask([call("delete", name="a.txt"), "\nI may not."])
    assert (code, out) == (0, "I may not.\n")
    assert "--approve always allows such calls" in err
    assert "✗ delete was not allowed" in err
    code, out, err = chat.ask([call("delete", name="a.txt"), "\nDone."], "--approve", "always")
    assert "a.txt is deleted" in err
    code, out, err = chat.ask([call("delete", name="a.txt"), "\nDone."], "--approve", "never")
    assert "is deleted" not in err


@pytest.mark.parametrize(("key", "asked", "deleted"), [("o", 2, 2), ("a", 1, 2), ("n", 2, 0), ("\x04", 2, 0)])
def test_the_user_is_asked_at_the_terminal(chat: Chat, key: str, asked: int, deleted: int) -> None:
    answers = [call("delete", name="a.txt"), call("delete", name="b.txt"), "\nThat is all."]
    with chat.terminal(answers, "Question?") as running:
        for name in ("a.txt", "b.txt")[:asked]:
            running.expect(f'delete {{"name": "{name}"}}')
            running.expect("allow delete? [o]nce, [a]lways in this conversation, [n]ever:")
            running.send("x")  # no answer
            running.send(key)
        running.expect("That is all.")
        assert running.wait() == 0
    assert running.shown.count("allow delete?") == asked
    assert running.shown.count("is deleted") == deleted


def test_what_is_to_be_approved_is_shown_to_its_end(chat: Chat) -> None:
    name = "\n".join(f"line {number}" for number in range(30)) + " " + "x" * 2000 + " the end"
    with chat.terminal([call("delete", name=name), "\nWell."], "Question?") as running:
        passed = running.expect("[n]ever:")
        running.send("n")
        assert running.wait() == 0
    assert "line 29" in passed
    assert "the end" in passed


def test_ctrl_c_stops_a_tool_at_once(chat: Chat) -> None:
    with chat.terminal([call("wait"), "\nDone."], "Question?") as running:
        running.expect("● wait")
        running.send("\x03")
        running.expect("stopped")
        assert running.wait() == 130


def test_ctrl_c_at_a_question_stops_the_turn(chat: Chat) -> None:
    with chat.terminal([call("delete", name="a.txt"), "\nDone."], "Question?") as running:
        running.expect("[n]ever:")
        running.send("\x03")
        running.expect("stopped")
        assert running.wait() == 130
    assert "is deleted" not in running.shown


def test_a_conversation_with_tools(chat: Chat) -> None:
    answers = [
        call("weather", city="Beijing"), "\nIt is sunny.", call("count"),
        "\nI was stopped.", call("delete", name="a.txt"), "\nGone.",
    ]  # fmt: skip
    with chat.terminal(answers) as running:
        running.expect("Message, or /help")
        running.send("/tools\r")
        running.expect("delete  (asks first)")
        running.expect("Delete a file.")
        running.send("And the weather?\r")
        running.expect("sunny in Beijing")
        running.expect("It is sunny.")
        running.send("/stats\r")
        running.expect("rounds       2")
        running.send("Count.\r")
        running.expect("number 1")
        running.send("\x03")
        running.expect("[stopped before the answer began; your message was taken back]")
        running.send("Once more.\r")
        running.expect("I was stopped.")
        running.send("Delete it.\r")
        running.expect("[n]ever:")
        running.send("a")
        running.expect("Gone.")
        running.send(f"/save {chat.home / 'talk.json'}\r")
        running.expect("Saved 10 messages")
        running.send("/exit\r")
        assert running.wait() == 0
    saved = json.loads((chat.home / "talk.json").read_text())
    roles = [message["role"] for message in saved["messages"]]
    turns = [["user", "assistant", "observation", "assistant"], ["user", "assistant"]]
    assert roles == [*turns[0], *turns[1], *turns[0]]


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (("--tools", "pyton"), 2, "did you mean python"),
        (("--tools", "no_such.py"), 1, "there is no such file of tools"),
        (("--tools", "mcp:files"), 2, "needs a file that lists MCP servers"),
        (("--mcp", "no_such.json"), 2, "no_such.json"),
        (("--tools", "browser", "--search", "yahoogle"), 2, "no search engine"),
        (("--tools", "python", "--approve", "perhaps"), 2, "--approve is ask, always or never"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    tmp_path: Path, args: tuple[str, ...], code: int, problem: str
) -> None:
    done = run("chat", *args, "-m", "no-such-model", "Question?", home=tmp_path, cwd=tmp_path)
    assert done.returncode == code
    assert problem in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
