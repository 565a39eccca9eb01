"""Steps with tools in the page: code and plots, output, approvals, failures, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import Asked, Rules, call
from page_server import Served, page_server
from python_conversations import make_environment_once, needs_sandbox

pytestmark = pytest.mark.page
People = Callable[..., Watch]

PLOT = """import matplotlib.pyplot as plt
plt.plot([1, 4, 9])
plt.title("Squares")
plt.show()
print("drawn")"""


def said(asked: Asked) -> str:
    return f"The tool said: {asked.observations[-1][:80]}"


def another(asked: Asked) -> str:
    """A second launch, if the first one was allowed."""
    return call("launch", '{"what": "a kite"}') if "is up" in asked.observations[-1] else said(asked)


RULES: Rules = {
    "plot": (call("python", PLOT), "There it is."),
    "fail": (call("python", "1 / 0"), "It failed."),
    "flood": (call("python", "for n in range(20000): print('line', n)"), "Much."),
    "endless": (call("python", "while True: pass"), "Never."),
    "weather": ("Let me see." + call("weather", '{"city": "Rome"}'), said),
    "launch": (call("launch", '{"what": "a rocket"}'), another, said),
    "hang": (call("hang", "{}"), "It stopped."),
    "write": (call("note", json.dumps({"name": "notes.csv", "text": "a,b\n1,2\n"})), "Written."),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with page_server(tmp_path_factory.mktemp("tools"), RULES, "python") as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    chat = Chat(person(served.url)).ready()
    chat.choose_tools("python", served.functions)
    yield chat
    served.model.rest()


@needs_sandbox
@pytest.mark.tools
def test_a_python_step_with_a_plot(chat: Chat, shoot: Callable[..., object]) -> None:
    make_environment_once()
    answer = chat.ask("Draw a plot")
    expect(answer).to_contain_text("There it is.")
    picture = answer.get_by_role("img", name="Squares")
    expect(picture).to_be_visible()
    assert picture.evaluate("(one) => one.complete && one.naturalWidth > 300 && one.width > 0 && one.height > 0")
    card = answer.locator("section.tool-card")
    card.locator("summary").click()
    expect(card.locator("pre.code .k, pre.code .kn").first).to_be_visible()
    expect(card.get_by_role("group", name=chat.t("tools.channel.output"))).to_contain_text("drawn")
    shoot(chat.page, "plot")
    chat.page.reload()
    expect(answer.get_by_role("img", name="Squares")).to_be_visible()
    answer.get_by_role("button", name="Squares").click()
    dialog = chat.page.get_by_role("dialog")
    expect(dialog.get_by_role("img", name="Squares")).to_be_visible()
    with chat.page.expect_download() as download:
        dialog.get_by_role("link", name=chat.t("file.download")).click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


@needs_sandbox
@pytest.mark.tools
def test_a_step_that_fails_and_one_that_says_much(chat: Chat) -> None:
    make_environment_once()
    answer = chat.ask("Please fail")
    expect(answer.locator("section.tool-card[data-state=error]")).to_contain_text("ZeroDivisionError")
    answer = chat.ask("Please flood")
    card = answer.locator("section.tool-card")
    card.locator("summary").click()
    expect(card).to_contain_text("line 0")
    assert len(card.inner_text()) < 210_000
    chat.button("tools.show_all", card).click()
    expect(chat.button("tools.show_less", card)).to_be_visible()


@needs_sandbox
@pytest.mark.tools
def test_stop_while_a_program_runs_for_ever(chat: Chat) -> None:
    make_environment_once()
    chat.send("Run something endless")
    expect(chat.message(-1).locator("section.tool-card[data-state=running]")).to_be_visible()
    chat.stop()
    answer = chat.ended("stopped")
    assert "Never." not in answer.inner_text()
    assert chat.message(-1).locator("section.tool-card[data-state=running]").count() == 0


def test_a_function_and_its_answer(chat: Chat, served: Served) -> None:
    answer = chat.ask("How is the weather?")
    expect(answer).to_contain_text("The tool said: rain in Rome")
    before = answer.inner_text()
    chat.page.reload()
    expect(chat.message(-1)).to_contain_text("The tool said: rain in Rome")
    assert [kind for kind in ("Let me see.", "The tool said") if kind in before] == ["Let me see.", "The tool said"]
    kinds = [part["kind"] for part in served.conversation()["messages"][-1]["parts"]]
    assert kinds == ["text", "tool", "text"]


@pytest.mark.parametrize("decision", ["once", "always", "never"])
def test_the_page_asks_before_a_call_runs(chat: Chat, decision: str, shoot: Callable[..., object]) -> None:
    chat.send("Please launch")
    group = chat.page.get_by_role("group").filter(has=chat.button(f"tools.allow_{decision}"))
    waiting = chat.message(-1).locator("section.tool-card[data-state=waiting]")
    expect(waiting.get_by_text("a rocket").first).to_be_visible()  # what it would be called with
    expect(group).to_be_focused()  # the box was empty; a key allows nothing
    if decision == "once":
        shoot(chat.page, "approval")
        chat.page.reload()  # the question is still there
        expect(waiting.get_by_text("a rocket").first).to_be_visible()
    chat.button(f"tools.allow_{decision}").click()
    if decision == "once":
        expect(waiting.get_by_text("a kite").first).to_be_visible()
        chat.button("tools.allow_never").click()
    answer = chat.ended()
    states = [card.get_attribute("data-state") for card in answer.locator("section.tool-card").all()]
    assert (
        states == {"once": ["done", "denied"], "always": ["done", "done"], "never": ["denied"]}[decision][: len(states)]
    )


def test_stop_while_a_tool_works(chat: Chat) -> None:
    chat.send("Please hang")
    expect(chat.message(-1).locator("section.tool-card[data-state=running]")).to_contain_text("working")
    chat.stop()
    chat.ended("stopped")


def test_a_file_that_a_tool_made(chat: Chat) -> None:
    answer = chat.ask("Please write")
    expect(answer).to_contain_text("notes.csv")
    with chat.page.expect_download() as download:
        answer.get_by_role("link", name="notes.csv").first.click()
    assert download.value.suggested_filename == "notes.csv"
    assert download.value.path().read_bytes() == b"a,b\n1,2\n"
    answer.get_by_role("button", name="notes.csv").first.click()
    expect(chat.page.get_by_role("complementary")).to_contain_text("1")
