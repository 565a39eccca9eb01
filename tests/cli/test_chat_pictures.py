"""Pictures in `glm4 chat`: as options, as commands, pasted; with a tiny random GLM-4V on the real engine."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image
from processes import run, terminal

from glm4 import LLM, ImagePart, Message, TextPart
from glm4.cli import console, main
from glm4.cli.conversation.conversation import Conversation, Turn, save
from glm4.cli.pictures import pasted_picture, plain_path, read_picture
from glm4.errors import InvalidRequestError
from golden_models import GOLDEN
from tiny import write_folder
from vision_folder import MODEL, write_vision_folder
from vision_pictures import QUESTIONS, held_out

FAST = ("--dtype", "fp32", "--context", "2048", "--temperature", "0", "--max-tokens", "8")


@pytest.fixture(autouse=True)
def no_piped_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vision_folder(tmp_path_factory.mktemp("vision") / "model"))


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its tower takes some seconds, in many pieces."""
    tower = replace(MODEL, num_hidden_layers=24, hidden_size=96, image_size=672)
    return str(write_vision_folder(tmp_path_factory.mktemp("slow") / "model", model=tower))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures and a file that only looks like one."""
    (tmp_path / "cat.png").write_bytes(png("red"))
    (tmp_path / "my dog.png").write_bytes(png("blue"))
    (tmp_path / "notes.png").write_text("not a picture")
    return tmp_path


def answers(model: str, *names: Path, question: str = "what?") -> str:
    """What Python gets from the same model."""
    content = [*({"type": "image", "image": name} for name in names), {"type": "text", "text": question}]
    options = {"dtype": "fp32", "max_model_len": 2048, "allow_many_images": len(names) > 1}
    with LLM(model, **options) as llm:  # type: ignore[arg-type]
        params = llm.default_sampling_params().replace(temperature=0, max_tokens=8)
        return llm.chat([{"role": "user", "content": content}], params)[0].outputs[0].text


def test_a_question_about_a_picture(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in ("cat.png", "my dog.png"):
        assert main(["chat", "-m", model, *FAST, "--image", str(pictures / name), "what?"]) == 0
        shown[name] = capsys.readouterr().out
        assert shown[name].rstrip("\n") == answers(model, pictures / name).rstrip("\n")
    assert shown["cat.png"] != shown["my dog.png"]


def test_a_model_that_was_trained_answers_about_what_it_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = str(GOLDEN / "vision" / "trained")
    for picture in held_out(2, 3):
        Image.fromarray(picture.pixels).save(tmp_path / "picture.png")
        kind = "digit" if "digit" in picture.answers else "color"
        words = ["chat", "-m", trained, "--temperature", "0", "--image", str(tmp_path / "picture.png")]
        for question, answer in zip(QUESTIONS[kind], picture.answers[kind], strict=True):
            assert main([*words, question]) == 0
            assert capsys.readouterr().out.strip() == answer


def test_two_pictures_need_an_option(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [pictures / "cat.png", pictures / "my dog.png"]
    words = ["chat", "-m", model, *FAST, "--image", str(both[0]), "--image", str(both[1]), "what?"]
    assert main(words) == 2
    assert "--allow-many-images goes beyond" in capsys.readouterr().err
    assert main([*words, "--allow-many-images"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == answers(model, *both).rstrip("\n")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing.png", "the image 'nothing.png' cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
        ("notes.png", "notes.png: the image cannot be decoded: it looks like text"),
        ("http://127.0.0.1:1/x.png", "the address cannot be fetched: 127.0.0.1 could not be reached"),
        ("http://user@host/x.png", "the address cannot be fetched: "),
    ],
)
def test_a_bad_picture_is_noticed_before_the_model_is_fetched(
    name: str, problem: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("GLM4_HOME", str(pictures / "home"))
    assert main(["chat", "-m", "glm-4v-9b", "--image", name, "what?"]) == 2
    assert problem in capsys.readouterr().err
    assert not (pictures / "home").exists()


def test_a_model_that_reads_text_only_is_not_fetched_for_a_picture(pictures: Path, tmp_path: Path) -> None:
    home, picture = tmp_path / "home", str(pictures / "cat.png")
    for name in ("starter-large", str(write_folder(tmp_path / "text"))):
        done = run("chat", "-m", name, "--image", picture, "what?", home=home)
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"error: {name} takes text only; a model that sees: glm-4v-9b" in done.stderr.decode()
    assert not home.exists()


def test_the_conversation(model: str, pictures: Path, tmp_path: Path) -> None:
    saved, dog = tmp_path / "talk.json", str(pictures / "my dog.png").replace(" ", "\\ ")
    with terminal("chat", "-m", model, *FAST, "--plain", home=tmp_path, HOME=str(pictures)) as screen:
        screen.expect("This model sees")
        screen.expect(">>> ")
        screen.send("/image ~/nothing.png\r")
        screen.expect("No such file or directory")
        screen.send("/image\r")
        screen.expect("No picture is attached")
        screen.send("/image ~/ca\t")
        screen.expect("/image ~/cat.png")
        screen.send("\r")
        screen.expect("[cat.png] is attached.")
        screen.expect("[cat.png] >>> ")
        screen.send(f"{dog}\r")  # before anything was asked
        screen.expect("[my dog.png] is attached, instead of [cat.png].")
        screen.send("/image none\r")
        screen.expect("[my dog.png] is not attached any longer.")
        screen.send("/image ~/cat.png\r")
        screen.expect("[cat.png] >>> ")
        screen.send("what?\r")
        screen.expect("cut off at max_tokens")
        screen.send(f"{dog} and this?\r")
        screen.expect("one picture per conversation")
        screen.expect("[cat.png]; /clear begins another")
        screen.send(f"and again? {pictures / 'cat.png'}\r")
        screen.expect("cat.png is in the conversation already.")
        screen.expect("cut off at max_tokens")
        screen.send(f"/save {saved}\r")
        screen.expect("Saved 4 messages")
        screen.send("/undo\r")
        screen.expect("Removed: and again?")
        screen.send("/undo\r")
        screen.expect("Removed: [cat.png] what?")
        screen.send(f"this? {dog}\r")
        screen.expect("[my dog.png] is attached.")
        screen.expect("cut off at max_tokens")
        screen.send("/clear\r")
        screen.expect("The conversation is empty.")
        screen.send(f"file://{pictures}/my%20dog.png\r")
        screen.expect("[my dog.png] >>> ")
        screen.send(f"/load {saved}\r")
        screen.expect("Loaded 4 messages")
        screen.expect("\r\n>>> ")  # what was attached belonged to the conversation before
        screen.send("more\r")
        screen.expect("cut off at max_tokens")
        screen.send("\x04")
        assert screen.wait() == 0
    assert "Traceback" not in screen.shown
    first, answer, *_ = json.loads(saved.read_text())["messages"]
    assert first["content"][0]["image_url"]["url"].startswith("data:image/")
    assert answer["content"].rstrip("\n") == answers(model, pictures / "cat.png").rstrip("\n")


def test_a_conversation_with_a_model_that_reads_text_only(pictures: Path, tmp_path: Path) -> None:
    text, saved = str(write_folder(tmp_path / "text")), tmp_path / "talk.json"
    message = Message("user", [ImagePart(png("red")), TextPart("what?")])
    save(Conversation([Turn(message)]), "glm-4v-9b", saved)
    with terminal("chat", "-m", text, *FAST, "--plain", home=tmp_path) as screen:
        screen.expect(">>> ")
        screen.send(f"/load {saved}\r")
        screen.expect("talk.json has")  # words that a line of any length has whole
        screen.expect(">>> ")
        screen.send(f"/image {pictures / 'cat.png'}\r")
        screen.expect("sees:")
        screen.send(f"{pictures / 'cat.png'} is where?\r")
        screen.expect("sent,")
        screen.expect("cut off at max_tokens")
        screen.send("/exit\r")
        assert screen.wait() == 0
    assert "sees:" in screen.shown
    assert "This model sees" not in screen.shown


def test_a_slow_picture_has_a_bar_and_can_be_stopped(slow_model: str, pictures: Path, tmp_path: Path) -> None:
    picture = ("--image", str(pictures / "cat.png"))
    with terminal("chat", "-m", slow_model, *FAST, *picture, home=tmp_path) as screen:
        screen.expect("[cat.png] >>> ")
        screen.send("what?\r")
        screen.expect("looking at the picture")
        screen.expect("% ")
        screen.send("\x03")
        screen.expect("[stopped before the answer began; your message was taken back]")
        screen.expect("[cat.png] >>> ")  # still attached
        screen.send("what?\r")
        screen.expect("looking at the picture")
        screen.expect("thinking")
        screen.expect("cut off at max_tokens")
        screen.send("/stats\r")
        screen.expect("s, looking at the picture included")
        screen.expect(">>> ")
        seen = len(re.findall("looking", screen.shown))
        screen.send("and?\r")
        screen.expect("cut off at max_tokens")
        assert len(re.findall("looking", screen.shown)) == seen  # its rows were kept
        screen.send("\x04")
        assert screen.wait() == 0


def test_lines_say_how_far_it_is_without_a_terminal(
    slow_model: str, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.PlainProgress, "interval", 0.0)
    assert main(["chat", "-m", slow_model, *FAST, "--image", str(pictures / "cat.png"), "what?"]) == 0
    shares = [int(share) for share in re.findall(r"^looking at the picture: (\d+)%$", capsys.readouterr().err, re.M)]
    assert len(shares) > 5
    assert shares == sorted(shares)


# Names


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("{cat}", ""),
        ("  {cat} what is this?", "what is this?"),
        ("{cat}\nwhat is\nthis?", "what is\nthis?"),
        ("what is this? {cat}", "what is this?"),
        ("'{dog}' what?", "what?"),
        ('"{dog}"', ""),
        ("{dog}", ""),
        ("{dog:escaped} what?", "what?"),
        ("what?\n{dog:escaped}", "what?"),
        ("what? '{dog}'", "what?"),
        ("file://{dog:url} what?", "what?"),
        ("'file://{dog:url}'", ""),
        ("~/cat.png", ""),
        ("cat.png what?", "what?"),
    ],
)
def test_a_pasted_path_is_found(line: str, rest: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("HOME", str(pictures))
    dog = str(pictures / "my dog.png")
    line = line.replace("{dog:escaped}", dog.replace(" ", "\\ ")).replace("{dog:url}", dog.replace(" ", "%20"))
    found = pasted_picture(line.replace("{dog}", dog).replace("{cat}", str(pictures / "cat.png")))
    assert found is not None
    assert Path(found[0]).name == ("my dog.png" if "dog" in line else "cat.png")
    assert Path(found[0]).is_file()
    assert found[1] == rest


@pytest.mark.parametrize(
    "line",
    [
        "",
        "/nowhere/cat.png",
        "is cat.png a cat",
        "what is in cat.png",
        "http://example.com/cat.png",
        "it's",
        "don't open 'cat.png",
        ".",
        "~nobody-has-this-name/cat.png",
        "x" * 5000 + ".png",
        "nul\0.png",
        "text.txt what?",
    ],
)
def test_other_lines_are_just_text(line: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    (pictures / "text.txt").write_text("text")
    assert pasted_picture(line) is None


def test_a_name_with_quotes_in_it(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "mine".png'
    path.write_bytes(png("red"))
    assert plain_path(str(path)) == str(path)
    quoted = "'" + str(path).replace("'", "'\\''") + "'"  # as terminals write it
    assert plain_path(quoted) == str(path)
    assert pasted_picture(f"{quoted} what?") == (str(path), "what?")


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.headers['Host'].replace('127.0.0.1', 'localhost')}/cat.png")
            self.end_headers()
            return
        body = png("red")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def picture_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_the_user_gives_may_be_private_but_not_one_it_redirects_to() -> None:
    with picture_server() as url:
        picture = read_picture(f"{url}/my%20cat.png?size=1")
        assert (picture.where, picture.data) == ("my cat.png", png("red"))
        with pytest.raises(InvalidRequestError, match=r"it redirects, and then localhost .* not public"):
            read_picture(f"{url}/away")
