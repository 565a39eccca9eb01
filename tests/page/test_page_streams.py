"""Answers that are being written while the page is reloaded, doubled, cut off, hidden or without its server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_cable import cable
from page_model import HOLD, Model
from page_server import Process, Served, page_server, text_of

from live import config, serve
from stepped import until

pytestmark = pytest.mark.page
People = Callable[..., Watch]

PARTS = [" ".join(f"w{part}x{n}" for n in range(120)) for part in range(4)]
STORY = f"\n\n{HOLD}".join(PARTS)
WHOLE = " ".join(PARTS)
LOST = r"ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE|ERR_FAILED|ERR_SOCKET|network|Failed to load"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = {"story": STORY, "prefill": f"{HOLD}At last.", "hello": "Hello."}
    with page_server(tmp_path_factory.mktemp("streams"), rules, functions=False, model={"max_num_seqs": 2}) as served:
        yield served
        served.model.rest()


@pytest.fixture(autouse=True)
def rest(served: Served) -> Iterator[None]:
    yield
    served.model.rest()


def whole(chat: Chat) -> None:
    """The last message has all of the story, once."""
    chat.ended()
    assert chat.shown() == WHOLE


def test_a_reload_in_mid_stream_loses_nothing_and_doubles_nothing(served: Served, person: People) -> None:
    chat = Chat(person(served.url))
    chat.send("Tell a story")
    for part in range(3):
        chat.waits_for(f"w{part}x119")
        chat.page.reload()
        chat.waits_for(f"w{part}x119")
        assert chat.shown() == " ".join(PARTS[: part + 1])
        served.model.go()
    whole(chat)
    chat.page.reload()
    whole(chat)
    user, assistant = served.conversation()["messages"]
    assert text_of(user) == "Tell a story"
    assert text_of(assistant).split() == WHOLE.split()


def test_an_answer_goes_on_when_the_page_is_closed(served: Served, person: People) -> None:
    watch = person(served.url)
    chat = Chat(watch)
    chat.send("Tell a story")
    chat.waits_for("w0x119")
    address = chat.page.url
    chat.page.close()
    served.model.go(3)
    until(lambda: served.conversation()["messages"][-1]["status"] == "completed", "the answer is complete")
    tab = watch.context.new_page()
    tab.goto(address)
    again = Chat(watch, page=tab)
    whole(again)


def test_two_tabs_show_one_conversation(served: Served, person: People) -> None:
    watch = person(served.url)
    first = Chat(watch)
    first.send("Tell a story")
    first.waits_for("w0x119")
    second = Chat(watch, page=watch.page(f"/ui#/c/{first.conversation}"))
    second.waits_for("w0x119")
    served.model.go()
    first.waits_for("w1x119")
    second.waits_for("w1x119")
    served.model.go(2)
    for tab in (first, second):
        whole(tab)
    second.ask("hello")
    expect(first.messages).to_have_count(4)
    first.ended()
    assert first.shown() == "Hello."
    first.send("Another story")
    second.waits_for("w0x119")
    second.stop()
    first.ended("stopped")
    second.ended("stopped")
    assert first.shown() == second.shown() == PARTS[0]


def test_the_network_is_away_for_a_while(served: Served, person: People) -> None:
    with cable(served.live.address) as line:
        watch = person(line.url)
        watch.expect(LOST)
        chat = Chat(watch)
        chat.send("Tell a story")
        chat.waits_for("w0x119")
        line.cut()
        expect(chat.page.locator("#banner")).to_have_text(chat.t("banner.away"))
        served.model.go_to_next()  # the server goes on
        assert chat.shown() == PARTS[0]
        line.mend()
        chat.waits_for("w1x119")
        expect(chat.page.locator("#banner")).to_be_hidden()
        served.model.go(2)
        whole(chat)
        # What is sent while the server is away arrives when it is back, once.
        line.cut()
        chat.send("hello")
        expect(chat.page.get_by_text(chat.t("send.away"))).to_be_visible()
        line.mend()
        expect(chat.messages).to_have_count(4)
        chat.ended()
        assert chat.shown() == "Hello."
    assert [text_of(one) for one in served.conversation()["messages"][2:]] == ["hello", "Hello."]


def test_a_page_that_was_frozen_shows_what_happened_meanwhile(served: Served, person: People) -> None:
    chat = Chat(person(served.url))
    chat.send("Tell a story")
    chat.waits_for("w0x119")
    session = chat.watch.context.new_cdp_session(chat.page)
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    served.model.go(3)
    until(lambda: served.conversation()["messages"][-1]["status"] == "completed", "the answer is complete")
    session.send("Page.setWebLifecycleState", {"state": "active"})
    whole(chat)


def test_stop_in_every_phase(served: Served, person: People) -> None:
    chat = Chat(person(served.url))
    chat.send("A long prefill")
    expect(chat.message(-1)).to_contain_text(chat.t("progress.prefill"))
    chat.stop()
    chat.ended("stopped")
    busy = [served.client().__enter__() for _ in range(2)]
    for client in busy:  # both places of the model are taken
        assert client.post("/v1/agent/turns", json={"content": "A story"}).status_code == 200
    until(lambda: len(served.model.asked) and served.live.llm.stats().num_running == 2, "both run")
    chat.fresh()
    chat.send("hello, in the queue")
    expect(chat.messages).to_have_count(2)
    expect(chat.message(-1)).to_have_attribute("data-status", "running")
    assert "Hello" not in chat.shown()
    chat.stop()
    chat.ended("stopped")
    assert chat.shown() == ""
    for client in busy:
        client.__exit__(None, None, None)


def test_a_server_that_was_killed_and_comes_back(tmp_path: Path, person: People) -> None:
    """A process with the real `--ui`, killed in mid-stream and started again on its port with its folder."""
    folder = tmp_path / "model"
    model = Model(folder, {"story": WHOLE, "hello": "Hello."}, burst=1, delay=0.02)
    with serve(config("scripted"), model.llm) as live:
        server = Process(live, folder, tmp_path / "sessions")
        server.start()
        try:
            watch = person(server.url)
            watch.expect(LOST)
            chat = Chat(watch)
            chat.send("Tell a story")
            stored = f"{server.url}/v1/agent/conversations"
            chat.waits_for("w0x0")
            until(lambda: text_of(httpx.get(f"{stored}/{chat.conversation}").json()["messages"][-1]), "it is stored")
            kept = text_of(httpx.get(f"{stored}/{chat.conversation}").json()["messages"][-1])
            server.kill()
            expect(chat.page.locator("#banner")).to_have_text(chat.t("banner.away"))
            server.start()
            expect(chat.page.locator("#banner")).to_be_hidden()
            chat.ended("interrupted")
            assert WHOLE.startswith(chat.shown())
            assert chat.shown().startswith(kept.strip())
            expect(chat.message(-1)).to_contain_text(chat.t("status.interrupted"))
            model.backend.delay = 0.0
            chat.button("message.retry", chat.message(-1)).first.click()
            expect(chat.message(-1)).to_contain_text(chat.t("message.branch", index=2, total=2))
            whole(chat)
            assert chat.messages.count() == 2
            chat.ask("hello")
            assert chat.shown() == "Hello."
        finally:
            server.kill()
