"""From the first visit to the first answer, with the starter model and `glm4 ui` as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from page_actions import Chat
from page_browser import Watch, expect

from stepped import until

pytestmark = [pytest.mark.page, pytest.mark.starter]
People = Callable[..., Watch]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it writes; its model is not loaded yet."""
    log = (tmp_path / "log").open("w+")
    # Not from the packed cache, so that loading takes a while and is seen.
    environment = os.environ | {"GLM4_PACKED_CACHE_GB": "0", "BROWSER": "true"}
    command = [sys.executable, "-m", "glm4", "ui", "-m", "starter", "--no-browser", "--sessions", str(tmp_path / "s")]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)

    def address() -> str:
        found = re.search(r"http://(127\.0\.0\.1|localhost):\d+", (tmp_path / "log").read_text())
        assert process.poll() is None, (tmp_path / "log").read_text()
        return found[0] if found else ""

    try:
        until(address, "the address is written", 120)
        yield process, address()
    finally:
        process.kill()
        process.wait()
        log.close()


def test_first_visit_to_first_answer(
    started: tuple[subprocess.Popen[str], str], person: People, shoot: Callable[..., object]
) -> None:
    process, url = started
    chat = Chat(person(url)).ready()
    banner = chat.page.locator("#banner")
    expect(banner.get_by_role("progressbar")).to_be_visible()
    shoot(chat.page, "loading")
    chat.send("Say hello in French, in one word.")  # before the model is there: it waits
    expect(chat.page.get_by_text(chat.t("send.waiting")).first).to_be_visible()
    expect(chat.messages).to_have_count(2)
    answer = chat.ended()
    expect(banner).to_be_hidden()
    stored = httpx.get(f"{url}/ui/conversations/{chat.conversation}").json()["messages"][-1]
    assert stored["usage"]["completion"] > 0
    assert re.search("[a-zA-Z]", chat.shown())
    expect(answer.locator(".message-stats")).to_contain_text("tokens/s")
    shoot(chat.page, "starter")
    chat.page.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 130)
