"""What waits to be sent: drafts of several conversations, and files that the model cannot take."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import Rules
from page_server import Served, page_server
from python_conversations import make_environment_once, needs_sandbox

from picture_files import encoded, picture

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = pytest.mark.page
People = Callable[..., Watch]
SOUND = bytes(8000)
WAVE = (
    struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(SOUND), b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data",
                len(SOUND)) + SOUND
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules: Rules = {
        "Show": "```html\n<h1>Hello</h1>\n```",
        "listen": lambda asked: "It is in /mnt/data." if "tone.wav" in asked.prompt else "I have nothing.",
    }
    with page_server(tmp_path_factory.mktemp("attachments"), rules, "python", functions=False) as served:
        yield served


def attach(chat: Chat, name: str, data: bytes, kind: str, state: str = "ready") -> Locator:
    """Add a file by the dialog, and wait until it has arrived."""
    with chat.page.expect_file_chooser() as chooser:
        chat.button("composer.attach").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})
    item = chat.page.locator(f".attachment[data-state={state}]").filter(has_text=name)
    expect(item).to_be_visible()
    return item


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    yield Chat(person(served.url)).ready()
    served.model.rest()


def test_each_conversation_has_a_draft_of_its_own(chat: Chat) -> None:
    chat.ask("The first")
    first = chat.page.url
    chat.box.fill("for the first")
    attach(chat, "plan.md", b"Plan", "text/markdown")
    chat.fresh()
    expect(chat.box).to_have_value("")
    expect(chat.page.locator(".attachment")).to_have_count(0)
    chat.ask("The second")
    chat.box.fill("for the second")
    chat.row("The first").get_by_role("link").click()
    expect(chat.box).to_have_value("for the first")
    expect(chat.page.locator(".attachment")).to_contain_text("plan.md")
    chat.page.reload()
    expect(chat.box).to_have_value("for the first")
    expect(chat.page.locator(".attachment[data-state=ready]")).to_contain_text("plan.md")
    chat.box.press("Enter")
    chat.ended()
    expect(chat.box).to_have_value("")
    chat.page.reload()
    assert chat.page.url == first
    expect(chat.message(3)).to_contain_text("for the first")
    expect(chat.box).to_have_value("")
    chat.row("The second").get_by_role("link").click()
    expect(chat.box).to_have_value("for the second")


def test_a_picture_for_a_model_that_does_not_see_is_not_sent(chat: Chat, served: Served) -> None:
    hint = chat.page.locator("#composer-hint")
    item = attach(chat, "dot.png", encoded(picture(), "PNG"), "image/png", "problem")
    expect(item).to_contain_text(chat.t("composer.unseen_short"))
    expect(hint).to_have_text(chat.t("composer.unseen", model="scripted"))
    asked = len(served.model.asked)
    chat.send("What is it?")
    expect(chat.page.locator("#alert")).to_contain_text("scripted")
    expect(chat.messages).to_have_count(0)
    assert len(served.model.asked) == asked
    chat.choose_tools("python")
    expect(chat.page.locator(".attachment[data-state=ready]")).to_contain_text(chat.t("composer.for_python"))
    expect(hint).to_be_hidden()
    chat.button("composer.remove", name="dot.png").click()
    expect(chat.box).to_be_focused()


@needs_sandbox
@pytest.mark.tools
def test_a_sound_is_played_in_the_message(chat: Chat) -> None:
    make_environment_once()
    chat.choose_tools("python")
    attach(chat, "tone.wav", WAVE, "audio/wav")
    expect(chat.ask("listen")).to_contain_text("It is in /mnt/data.")
    player = chat.message(1).locator("audio")
    chat.watch.until(chat.page, lambda: player.evaluate("(one) => one.duration") == 1, "the sound is loaded")
    assert player.get_attribute("aria-label") == "tone.wav"


def test_a_preview_over_the_whole_window_hides_the_rest(chat: Chat) -> None:
    answer = chat.ask("Show it")
    chat.button("artifact.show", answer).click()
    frame = chat.page.frame_locator("#panel iframe")
    expect(frame.get_by_role("heading", name="Hello")).to_be_visible()
    chat.button("artifact.larger").click()
    for _ in range(12):
        chat.page.keyboard.press("Tab")
        assert not chat.evaluate("document.activeElement.matches('#center *, #sidebar *')"), "behind the preview"
    chat.button("artifact.source").click()
    expect(chat.page.locator("#panel pre")).to_contain_text("<h1>Hello</h1>")
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#panel")).to_be_hidden()
    expect(chat.button("artifact.show", answer)).to_be_focused()
