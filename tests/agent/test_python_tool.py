"""The python tool: a session that lives on, what it shows, how calls end. With an environment without packages."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from python_conversations import Talk, make_bare_home, needs_sandbox, running

from glm4.agent.tools.python import PythonTool
from glm4.errors import Glm4Error, InvalidRequestError, SandboxUnavailableError
from glm4.sandbox.limits import Limits

pytestmark = needs_sandbox


@pytest.fixture(scope="module")
def bare_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bare_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _home(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_HOME", str(bare_home))


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    tool = PythonTool()
    yield Talk(tool, tmp_path)
    tool.close()


def test_variables_live_on_and_the_last_expression_is_shown(talk: Talk) -> None:
    assert talk.run("import math\nx = 41\nprint('hello')\nx + 1").text == "hello\n42"
    seen = talk.run("def double(n): return 2 * n\ndouble(x), math.pi > 3, _")
    assert seen.text == "(82, True, 42)"
    assert not seen.failed
    assert talk.run("x;").text == "[no output]"
    assert talk.run("None").text == "[no output]"
    assert talk.run("__name__, 'glm4' in __import__('sys').modules").text == "('__main__', False)"


def test_code_comes_raw_in_json_and_in_fences(talk: Talk) -> None:
    assert talk.run(json.dumps({"code": "print('a')"}), raw=False).text == "a"
    assert talk.run("```python\nprint('b')\n```").text == "b"
    assert talk.run("Here it is:\n```python\nprint('c')\n```\nand\n```\nprint('d')").text == "c\nd"
    assert talk.run("text = '''\n```\nkept\n```\n'''\nprint(text.strip())").text == "```\nkept\n```"
    assert talk.run("%matplotlib inline\nprint('e')").text == "e"
    assert "no lines with ! or %" in talk.run("!pip install x").text


def test_a_module_that_is_not_there_is_answered_with_those_that_are(talk: Talk) -> None:
    seen = talk.run("import nothing_of_that_name")
    assert seen.failed
    assert "No module named 'nothing_of_that_name'\nThis session has numpy, pandas" in seen.text
    assert "This session has" not in talk.run("{}['a']").text


def test_tracebacks_have_only_frames_of_code(talk: Talk) -> None:
    talk.run("import json")
    code = (
        "def inner():\n    json.loads('{')\ntry: inner()\nexcept ValueError as error: raise KeyError('no') from error"
    )
    seen = talk.run(code)
    assert seen.failed
    assert seen.shown("error").rstrip("\n") == seen.text
    assert 'File "<cell 2>", line 2, in inner\n    json.loads' in seen.text
    assert "direct cause" in seen.text
    assert seen.text.endswith("KeyError: 'no'")
    assert "worker" not in seen.text
    assert "json/decoder.py" not in seen.text
    assert 'File "<cell 3>", line 1' in (text := talk.run("if 1:").text)
    assert "IndentationError" in text
    assert "repeated" in talk.run("def f(): f()\nf()").text
    if sys.version_info >= (3, 11):
        text = talk.run(
            "try: json.loads('{')\nexcept ValueError as e: raise ExceptionGroup('several', [e, OSError()])"
        ).text
        assert "| ExceptionGroup: several (2 sub-exceptions)" in text
        assert "decoder.py" not in text


def test_a_module_of_the_data_folder_is_code_too(talk: Talk) -> None:
    talk.tool.add_file("helper.py", b"def fail():\n    raise OSError('from the helper')\n")
    text = talk.run("import helper\nhelper.fail()").text
    assert 'File "/mnt/data/helper.py", line 2, in fail' in text


def test_an_exception_that_cannot_be_shown_does_no_harm(talk: Talk) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise ValueError\n    __repr__ = __str__\nraise Bad()"
    assert "Bad" in talk.run(code).text
    assert talk.run("1").text == "1"


def test_output_is_shown_while_the_code_runs(talk: Talk) -> None:
    """The code goes on only when what it printed has arrived."""

    def on_output(text: str) -> None:
        if "begun" in text:
            talk.tool.add_file("go", b"")

    talk.run("import pathlib, time")
    code = "print('begun', end=' ')\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('done')"
    assert talk.run(code, on_output=on_output).text == "begun done"


def test_output_of_c_code_and_children_is_shown_in_order(talk: Talk) -> None:
    talk.run("import os, subprocess, sys")
    code = (
        "print('one', flush=True)\nos.write(1, b'two\\n')\nos.system('echo three; echo four >&2')\n"
        "print('five', file=sys.stderr)\nsubprocess.run([sys.executable, '-c', 'print(6)']);"
    )
    assert talk.run(code).text.splitlines() == ["one", "two", "three", "four", "five", "6"]


def test_terminal_sequences_are_removed(talk: Talk) -> None:
    code = r"print('\x1b[31mred\x1b[0m \x1b]0;title\x07done\x07\x9b2J \x1b]8;;http://x\x1b\\link\n10%\r50%\r100%')"
    seen = talk.run(code)
    assert seen.text == "red done link\n100%"
    assert "\x1b" not in seen.shown("output")


def test_nobody_answers_input(talk: Talk) -> None:
    assert "input() does not work here" in talk.run("name = input('Name? ')").text
    assert talk.run("import sys\nsys.stdin.read()").text == "''"


def test_streams_that_code_breaks_are_mended(talk: Talk) -> None:
    assert talk.run("import sys\nsys.stdout = None\nsys.stderr.close()").text == "[no output]"
    talk.run("sys.stdout.close()")
    assert talk.run("print('here again')").text == "here again"


def test_leaving_is_not_an_end(talk: Talk) -> None:
    talk.run("x = 1")
    assert not talk.run("exit()").failed
    assert "SystemExit: no" in talk.run("raise SystemExit('no')").text
    assert talk.run("x").text == "1"


def test_long_output_keeps_its_beginning_and_end(talk: Talk) -> None:
    text = talk.run("for i in range(100_000): print(i)").text
    assert len(text) < 13_000
    assert text.startswith("0\n1\n2\n")
    assert text.endswith("99998\n99999")
    assert "characters left out" in text


def test_endless_output_is_stopped(talk: Talk) -> None:
    talk.run("x = 1")
    seen = talk.run("while True: print('y' * 1000)")
    assert "printed more than 16 MB; variables are kept" in seen.text
    assert seen.failed
    assert talk.run("x").text == "1"


def test_a_call_that_takes_too_long_is_interrupted_and_keeps_variables(talk: Talk) -> None:
    talk.run("import time\nx = 5")
    talk.tool.seconds = 0.5
    seen = talk.run("y = 6\nprint('begun')\ntime.sleep(600)\nx = 7")
    assert seen.failed
    assert "begun" in seen.text
    assert "line 3" in seen.text
    assert "KeyboardInterrupt" in seen.text
    assert seen.text.endswith("[stopped after 0.5 seconds, the most that a call may take; variables are kept]")
    talk.tool.seconds = 60
    assert talk.run("x, y").text == "(5, 6)"


@pytest.mark.parametrize(
    "code",
    [
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "sum(range(10**14))",
        "import os\nos.kill(os.getpid(), 19)",  # SIGSTOP
    ],
    ids=["ignores", "in C", "stopped"],
)
def test_code_that_does_not_listen_costs_the_interpreter(talk: Talk, code: str) -> None:
    talk.run("x = 5\nopen('kept.txt', 'w').write('k')")
    seen = talk.run(code, left=2)
    assert seen.failed
    assert "a new interpreter takes over: variables and imports are lost, files in /mnt/data are kept" in seen.text
    assert "NameError" in talk.run("x").text
    assert talk.run("open('kept.txt').read()").text == "'k'"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os\nos._exit(3)", "ended its own process (exit status 3)"),
        ("import ctypes\nctypes.string_at(0)", "crashed (SIGSEGV)"),
        ("import os\nos.kill(os.getpid(), 9)", "crashed (SIGKILL)"),
        ("import os, signal\nos.kill(1, 9); os.killpg(0, 9)", "crashed (SIGKILL)"),
    ],
)
def test_an_interpreter_that_ends_is_replaced(talk: Talk, code: str, why: str) -> None:
    talk.run("x = 5")
    seen = talk.run(f"print('before', flush=True)\n{code}")
    assert seen.text.startswith("before\n")
    assert why in seen.text
    assert "variables and imports are lost" in seen.text
    assert "NameError" in talk.run("x").text


def test_memory_is_limited(tmp_path: Path) -> None:
    tool = PythonTool(limits=Limits(memory_nbytes=256 << 20))
    talk = Talk(tool, tmp_path)
    talk.run("x = 5")
    assert "MemoryError" in talk.run("b = bytearray(1 << 30)").text
    assert talk.run("x").text == "5"
    talk.run("import os, time")
    children = "for _ in range(4):\n    if os.fork() == 0: b = b'x' * (100 << 20)\n    else: continue\n    break"
    assert "used more memory than it may" in talk.run(f"{children}\ntime.sleep(600)").text
    assert talk.run("1").text == "1"
    tool.close()


def test_a_forked_child_does_not_answer(talk: Talk) -> None:
    talk.run("import os\nx = 1\nif os.fork() == 0: x = 2")
    assert talk.run("x").text == "1"


def test_threads_and_children_go_on_between_calls_and_end_with_the_conversation(talk: Talk) -> None:
    talk.run("import subprocess, threading, time\nsubprocess.Popen(['sleep', '271828182']);")
    talk.run("go = threading.Event()\nthreading.Thread(target=lambda: (go.wait(), print('late')), daemon=True).start()")
    assert running("271828182")
    assert "late" in talk.run("go.set()\ntime.sleep(0.2)").text
    talk.tool.close()
    assert not running("271828182")


def test_a_cancelled_call_ends(talk: Talk) -> None:
    cancelled = threading.Event()
    seen = talk.run(
        "print('begun')\nimport time; time.sleep(600)", cancelled=cancelled, on_output=lambda _: cancelled.set()
    )
    assert "stopped before it was done" in seen.text
    assert talk.run("1").text == "1"


def test_closing_from_another_thread_ends_a_call(talk: Talk) -> None:
    seen = talk.run(
        "print('begun')\nimport time; time.sleep(600)",
        on_output=lambda _: threading.Thread(target=talk.tool.close).start(),
    )
    assert seen.failed
    with pytest.raises(Glm4Error, match="closed"):
        talk.run("1")


def test_two_conversations_share_nothing(talk: Talk, tmp_path: Path) -> None:
    other = Talk(PythonTool(), tmp_path)
    talk.run("x = 5\nopen('/mnt/data/a', 'w').write('a')\nopen('/tmp/b', 'w').write('b')")
    assert "NameError" in other.run("x").text
    assert other.run("import os\nos.listdir('/mnt/data'), os.path.exists('/tmp/b')").text == "([], False)"
    assert int(other.run("len([p for p in os.listdir('/proc') if p.isdigit()])").text) <= 3
    other.tool.close()


def test_nothing_is_left_when_a_conversation_ends(tmp_path: Path) -> None:
    tool = PythonTool()
    path = tool._data.path
    talk = Talk(tool, tmp_path)
    deep = "import os\nfor _ in range(1100):\n    os.mkdir('d'); os.chdir('d')\nos.chdir('/mnt/data')\nos.chmod('d', 0)"
    assert talk.run(deep).text == "[no output]"
    tool.close()
    assert not path.parent.exists()
    tool.close()


def test_files_of_users_are_there_under_safe_names(talk: Talk) -> None:
    assert talk.tool.add_file("销售.csv", b"a,b\n1,2\n") == "/mnt/data/销售.csv"
    assert talk.tool.add_file("销售.csv", b"other") == "/mnt/data/销售-2.csv"
    assert talk.tool.add_file("../../etc/pass\x1b[1mwd", b"") == "/mnt/data/pass[1mwd"
    assert talk.tool.add_file("..", b"") == "/mnt/data/file"
    seen = talk.run("open('销售.csv').read(), open('销售-2.csv').read()")
    assert seen.text == "('a,b\\n1,2\\n', 'other')"
    assert seen.files == []
    assert talk.run("open('销售.csv', 'a').write('3,4')\nopen('sub', 'x').close()").text.startswith(
        "[/mnt/data/sub (0 B)"
    )


def test_new_and_changed_files_are_offered_once(talk: Talk) -> None:
    seen = talk.run("import os\nos.makedirs('out')\nopen('out/图.txt', 'w').write('one')\nopen('.hidden', 'w').close()")
    assert [(file.name, talk.data(file)) for file in seen.files] == [("图.txt", b"one")]
    assert "[/mnt/data/out/图.txt (3 B) is offered to the user]" in seen.text
    assert talk.run("1").files == []
    assert talk.run("os.utime('out/图.txt')").files == []
    assert [talk.data(file) for file in talk.run("open('out/图.txt', 'a').write('!')").files] == [b"one!"]


def test_a_store_that_refuses_a_file_is_told_to_the_model(tmp_path: Path) -> None:
    tool = PythonTool()
    seen = Talk(tool, tmp_path, max_file_bytes=10).run("open('a.txt', 'w').write('x' * 11);")
    assert seen.text == "[a.txt cannot be shown: a.txt has 11 bytes; files may have 10]"
    assert seen.files == []
    tool.close()


def test_a_folder_over_its_quota_gives_up_what_the_call_wrote(tmp_path: Path) -> None:
    tool = PythonTool(limits=Limits(disk_nbytes=4 << 20))
    talk = Talk(tool, tmp_path)
    talk.run("open('old', 'w').write('o')")
    talk.run("import os, time")
    fill = "os.makedirs('a/b/c/d/e')\nfor i in range(10): open(f'a/b/{i}', 'wb').write(os.urandom(1 << 20))"
    seen = talk.run(f"{fill}\ntime.sleep(600)")
    assert "wrote more files than fit" in seen.text
    assert "what this call wrote to /mnt/data was removed" in seen.text
    assert talk.run("import os\nos.listdir('.')").text == "['old']"
    with pytest.raises(InvalidRequestError, match="does not fit into /mnt/data, which takes 4 MB"):
        tool.add_file("big", bytes(5 << 20))
    tool.close()


def test_without_bubblewrap_there_is_no_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("prlimit", "setpriv", "sh", "unshare"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match=r"only in a sandbox: bubblewrap is not installed; install it"):
        PythonTool()


def test_without_an_environment_the_tool_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="glm4 tools install"):
        PythonTool()


def test_very_long_code_is_refused(talk: Talk) -> None:
    with pytest.raises(InvalidRequestError, match="200,000"):
        talk.run("#" * 200_001)
