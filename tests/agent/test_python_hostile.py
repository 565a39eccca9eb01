"""The python tool against code that lies to it: forged answers, traps in the data folder, pictures that are none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from python_conversations import Talk, make_bare_home, needs_sandbox

from glm4.agent.tools.python import PythonTool
from glm4.agent.tools.python.data_folder import DataFolder, safe_name
from glm4.agent.tools.python.messages import BrokenMessageError, Messages, pack
from glm4.agent.tools.python.output_text import OutputText
from glm4.sandbox.disk import remove

pytestmark = pytest.mark.slow  # minutes on two cores, together with the like

# Inside: writes to every descriptor that is not a standard one, among them that of the answers.
FORGE = """
import json, os, struct, zlib
def frame(message, data=b""):
    text = json.dumps(message).encode()
    return struct.pack(">II", len(text), len(data)) + text + data
def forge(data):
    for number in range(3, 64):
        try: os.write(number, data)
        except OSError: pass
def png(width, height):
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = zlib.compress((b"\\0" * (1 + min(width, 100))) * min(height, 100))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")
def figure(data, call, alt="x"):
    forge(frame({"kind": "figure", "call": call, "alt": alt}, data))
"""


@pytest.fixture(scope="module")
def bare_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bare_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def talk(bare_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Talk]:
    monkeypatch.setenv("GLM4_HOME", str(bare_home))
    tool = PythonTool()
    talk = Talk(tool, tmp_path)
    assert talk.run(FORGE).text == "[no output]"
    yield talk
    tool.close()


# Forged answers


@needs_sandbox
def test_printed_answers_are_output(talk: Talk) -> None:
    seen = talk.run("import sys\nsys.stdout.buffer.write(frame({'kind': 'done', 'call': 2}))\nprint()\nprint('after')")
    assert seen.text.endswith("after")
    assert '"kind": "done"' in seen.text
    assert talk.run("os.write(1, frame({'kind': 'done', 'call': 3}))\n'end'").text.endswith("'end'")
    child = "import subprocess\nsubprocess.run(['cat'], input=frame({'kind': 'done', 'call': 4}))\n'end'"
    assert talk.run(child).text.endswith("'end'")


@needs_sandbox
def test_a_forged_end_changes_only_its_own_call(talk: Talk) -> None:
    forged = {"kind": "done", "call": 2, "error": {"not": "text"}, "left_out": "many"}
    assert not talk.run(f"forge(frame({forged}))\nimport time; time.sleep(0.2)").failed
    assert talk.run("'next'").text == "'next'"
    assert talk.run("forge(frame({'kind': 'done', 'call': 5, 'error': 'forged'}))").text == "[no output]"
    assert talk.run("6").text in ("6", "forged")  # it lied about its own result
    assert talk.run("7").text == "7"


@needs_sandbox
@pytest.mark.parametrize(
    "data",
    [
        "struct.pack('>II', 1 << 31, 0)",
        "struct.pack('>II', 2, 1 << 31) + b'{}'",
        "struct.pack('>II', 200_000, 0) + b'[' * 200_000",
        "struct.pack('>II', 9, 0) + b'not JSON!'",
        "struct.pack('>II', 2, 0) + b'[]'",
        "b'\\xff' * 100",
    ],
    ids=["giant", "giant picture", "deep", "no JSON", "no object", "garbage"],
)
def test_broken_answers_cost_the_interpreter(talk: Talk, data: str) -> None:
    seen = talk.run(f"forge({data})\nimport time; time.sleep(60)")
    assert "wrote to where its interpreter answers; a new interpreter takes over" in seen.text
    assert talk.run("1").text == "1"


@needs_sandbox
def test_an_endless_flood_of_answers_costs_the_interpreter(talk: Talk) -> None:
    seen = talk.run("data = frame({'kind': 'other', 'x': 'y' * 60000})\nwhile True: forge(data)")
    assert "wrote to where its interpreter answers" in seen.text
    assert talk.run("1").text == "1"


@needs_sandbox
def test_half_an_answer_is_not_waited_for(talk: Talk) -> None:
    seen = talk.run("forge(struct.pack('>II', 1 << 19, 0))", left=2)
    assert "a new interpreter takes over" in seen.text
    assert talk.run("2").text == "2"


# Pictures that are none


@needs_sandbox
def test_only_pictures_are_shown(talk: Talk) -> None:
    seen = talk.run(
        "import pickle\n"
        "figure(pickle.dumps(os.system), 2)\n"
        "figure(b'<svg onload=alert(1)>', 2)\n"
        "figure(b'\\x89PNG\\r\\n\\x1a\\n' + b'x' * 100, 2)\n"
        "figure(png(5000, 10), 2)\n"
        "figure(png(10, 1 << 31), 2)\n"
        "figure(png(0, 10), 2)\n"
        "figure(png(10, 10)[:-5], 2)\n"
        "figure(png(10, 10) + b'<script>', 2)\n"
        "figure(png(10, 10), 1)\n"
        "figure(png(10, 10), 2, 'a\\x1b[1m\\u202e\\n' + 'b' * 2000)"
    )
    assert [file.name for file in seen.files] == ["figure-1.png"]
    assert seen.files[0].alt is not None
    assert seen.files[0].alt.startswith("a[1m bbb")
    assert len(seen.files[0].alt) == 500
    assert "8 more figures are not shown" in seen.text


@needs_sandbox
def test_no_more_than_eight_pictures_are_shown(talk: Talk) -> None:
    seen = talk.run("for i in range(20): figure(png(10 + i, 10), 2)")
    assert len(seen.files) == 8
    assert "12 more figures are not shown" in seen.text


@needs_sandbox
def test_values_that_claim_to_be_pictures_are_checked(talk: Talk) -> None:
    seen = talk.run("class P:\n    def _repr_png_(self): return b'not a picture'\nP()")
    assert seen.files == []
    assert "1 more figures are not shown" in seen.text
    assert "TypeError" in talk.run("class Q:\n    def _repr_png_(self): raise TypeError\nQ()").text


# Traps in the data folder


@needs_sandbox
def test_links_to_files_of_this_machine_are_not_followed(talk: Talk, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    tmp_path.chmod(0o755)
    seen = talk.run(
        f"os.symlink({str(secret)!r}, 'a.txt'); os.symlink({str(tmp_path)!r}, 'folder'); os.symlink('/etc', 'etc')\n"
        "os.symlink('a.txt', 'b.txt'); os.symlink('/proc/self/environ', 'c'); os.symlink('/dev/zero', 'd')\n"
        "os.symlink('.', 'loop'); open('real.txt', 'w').write('r'); os.link('real.txt', 'hard.txt')"
    )
    assert sorted((file.name, talk.data(file)) for file in seen.files) == [("hard.txt", b"r"), ("real.txt", b"r")]


@needs_sandbox
def test_names_come_clean(talk: Talk) -> None:
    names = ["\\x1b[2Jclear", "right\\u202egnp.exe", "two\\nlines", "--option", "%s%n", "x" * 255]
    listed = ", ".join(f"'{name}'" for name in names)
    seen = talk.run(f"for name in [{listed}, b'\\xff\\xfe']: open(name, 'wb').write(os.fsencode(name))")
    assert len(seen.files) == len(names) + 1
    for file in seen.files:
        assert file.name.isprintable(), file.name
        assert len(file.name) <= 120
        assert not file.name.startswith((".", "-"))
    assert all(line.isprintable() for line in seen.text.splitlines())


@needs_sandbox
def test_too_many_and_too_large_files_are_not_read(talk: Talk) -> None:
    seen = talk.run(
        "for i in range(100): open(f'{i:03}', 'w').write(str(i))\n"
        "for i in range(3):\n    with open(f'large{i}', 'wb') as file: file.truncate((64 << 20) - i)"
    )
    assert len(seen.files) == 20
    assert "83 more files in /mnt/data are not offered" in seen.text
    many = "os.mkdir('many')\nfor i in range(2100): os.mkdir(f'many/{i}')"
    assert talk.run(many).files == []


def test_a_folder_is_read_without_waiting_and_without_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    folder = DataFolder(inside, 1 << 20)
    os.mkfifo(inside / "pipe")
    (inside / "link").symlink_to(outside)
    (inside / "a" / "b" / "c" / "d").mkdir(parents=True)
    (inside / "a" / "b" / "c" / "seen").write_text("3")
    (inside / "a" / "b" / "c" / "d" / "too deep").write_text("4")
    assert folder.changes() == ([("a/b/c/seen", b"3")], 0)
    folder.close()
    folder.close()


def test_a_link_put_in_the_place_of_a_file_is_never_read(tmp_path: Path) -> None:
    """Names are exchanged as fast as possible while the folder is read again and again."""
    inside = tmp_path / "data"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_text("secret")
    folder = DataFolder(inside, 1 << 20)
    stop = threading.Event()

    def exchange() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (inside / "sub" / "f").write_text(f"public {number}")
            (inside / "sub").rename(inside / "aside")
            (inside / "sub").symlink_to(tmp_path / "outside")
            (inside / "sub").unlink()
            (inside / "aside").rename(inside / "sub")
            (inside / "sub" / "f").unlink()
            (inside / "sub" / "f").symlink_to(tmp_path / "outside" / "f")
            (inside / "sub" / "f").unlink()

    thread = threading.Thread(target=exchange)
    thread.start()
    read = [file.data for _ in range(300) for file in folder.changes()[0]]
    stop.set()
    thread.join()
    assert b"secret" not in read
    assert any(data.startswith(b"public") for data in read)
    folder.close()


def test_uploads_do_not_follow_links_that_code_left(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "a.txt").symlink_to(tmp_path / "victim")
    folder = DataFolder(inside, 1 << 20)
    assert folder.add("a.txt", b"data") == "a-2.txt"
    assert not (tmp_path / "victim").exists()
    folder.close()


def test_removing_follows_no_link_and_knows_no_depth(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "kept").write_text("k")
    root = os.open(inside, os.O_RDONLY)
    handle = os.open(inside, os.O_RDONLY)
    for _ in range(1100):
        os.symlink(tmp_path, "link", dir_fd=handle)
        os.mkdir("d", dir_fd=handle)
        deeper = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)
    for name in os.listdir(inside):  # noqa: PTH208
        remove(name, root)
    os.close(root)
    assert list(inside.iterdir()) == []
    assert (tmp_path / "kept").read_text() == "k"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("C:\\Users\\me\\表 格.xlsx", "表 格.xlsx"),
        ("/etc/passwd", "passwd"),
        ("..", "file"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ("a\x00b\x1b\u202e.txt", "ab.txt"),
        ("\udcff", "?"),
        ("é" * 200 + ".txt", "é" * 58 + ".txt"),
        ("a." + "b" * 300, "a." + "b" * 118),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


# The parts, bit by bit


def test_messages_in_pieces_are_read() -> None:
    data = pack({"a": 1}) + pack({"b": "二"})
    messages = Messages()
    read = [message for byte in data for message, _ in messages.add(bytes([byte]))]
    assert read == [{"a": 1}, {"b": "二"}]
    with pytest.raises(BrokenMessageError):
        list(messages.add(b"\xff" * 8))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("表\x1b[31m格\x1b[0m".encode(), "表格"),
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"\x1b]0;title\x1b\\x\x1bPq#0\x1b\\y\x1b(Bz", "xyz"),
        (b"1%\r2%\r3%\nend", "1%\n2%\n3%\nend"),
        (b"broken \xe4\xb8", "broken �"),
        (b"open \x1b]0;never closed", "open ]0;never closed"),
        (b"a\x00\x08\x07b\x7f", "ab"),
    ],
)
def test_text_comes_out_the_same_in_whatever_pieces(data: bytes, text: str) -> None:
    for size in range(1, len(data) + 1):
        output = OutputText(1000)
        pieces = [output.add(data[i : i + size]) for i in range(0, len(data), size)]
        assert "".join([*pieces, output.add(b"", final=True)]) == text
