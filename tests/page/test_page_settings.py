"""What turns are made with: models, sampling options, the library of system prompts; and the operator's page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import Model
from page_server import Served, page_server

from stepped import until

pytestmark = pytest.mark.page
People = Callable[..., Watch]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("settings")
    second = {"hello": "<think>They greet me.</think>\nHello from the second."}
    more = {"second": Model(folder / "second", second, dialect="glm_z1")}
    rules = {"hello": "Hello from the first.", "long": "word " * 400}
    with page_server(folder, rules, more=more) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    yield Chat(person(served.url)).ready()
    served.model.rest()


def test_sampling_options_go_with_the_question_and_stay_with_the_conversation(chat: Chat, served: Served) -> None:
    dialog = chat.settings()
    dialog.get_by_label(chat.t("settings.max_tokens"), exact=True).fill("12")
    dialog.get_by_label(chat.t("settings.top_p"), exact=True).fill("7")
    chat.page.keyboard.press("Tab")
    expect(dialog.get_by_text(chat.t("settings.out_of_range", min=0, max=1))).to_be_visible()
    dialog.get_by_label(chat.t("settings.top_p"), exact=True).fill("")
    dialog.get_by_label(chat.t("settings.temperature"), exact=True).fill("0.5")
    dialog.get_by_label(chat.t("settings.stop"), exact=True).fill("END")
    chat.page.keyboard.press("Tab")
    chat.close(dialog)
    answer = chat.ask("long", status="completed")
    expect(answer).to_contain_text(chat.t("limit.length"))
    sampling = served.conversation()["conversation"]["params"]["sampling"]
    assert sampling == {"max_tokens": 12, "temperature": 0.5, "stop": ["END"]}
    chat.page.reload()
    expect(chat.messages).to_have_count(2)
    dialog = chat.settings()
    expect(dialog.get_by_label(chat.t("settings.max_tokens"), exact=True)).to_have_value("12")
    dialog.get_by_role("button", name=chat.t("settings.reset")).click()
    expect(dialog.get_by_label(chat.t("settings.max_tokens"), exact=True)).to_have_value("")
    chat.close(dialog)
    until(lambda: served.conversation()["conversation"]["params"]["sampling"] == {}, "the options are reset")


def test_the_library_of_system_prompts(chat: Chat, served: Served) -> None:
    dialog = chat.settings()
    text = dialog.get_by_role("textbox", name=chat.t("settings.system"), exact=True)
    text.fill("You speak like a pirate.")
    dialog.get_by_role("button", name=chat.t("prompts.save"), exact=True).click()
    chat.answer("prompts.save_action", "Pirate")
    saved = dialog.get_by_role("combobox", name=chat.t("prompts.saved"))
    expect(saved.locator("option:checked")).to_have_text("Pirate")
    chat.close(dialog)
    chat.ask("hello")
    assert "You speak like a pirate." in served.model.asked[-1].prompt
    dialog = chat.settings()
    saved.select_option(chat.t("prompts.none"))
    expect(text).to_have_value("")
    chat.close(dialog)
    chat.fresh()
    chat.ask("hello")
    assert "pirate" not in served.model.asked[-1].prompt
    dialog = chat.settings()
    saved.select_option("Pirate")
    expect(text).to_have_value("You speak like a pirate.")
    dialog.get_by_role("button", name=chat.t("prompts.delete"), exact=True).click()
    chat.answer("prompts.delete")
    expect(saved.locator("option", has_text="Pirate")).to_have_count(0)


def test_another_model_answers_and_its_thoughts_are_folded(chat: Chat) -> None:
    chat.ask("hello")
    chat.page.get_by_role("combobox", name=chat.t("settings.model")).select_option("second")
    answer = chat.ask("hello")
    expect(answer).to_have_accessible_name(chat.t("message.label", speaker="second", number=4))
    expect(answer).to_contain_text("Hello from the second.")
    thoughts = answer.locator("details.reasoning")
    expect(thoughts.locator("summary")).to_be_visible()
    expect(thoughts.get_by_text("They greet me.")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.get_by_text("They greet me.")).to_be_visible()
    chat.page.reload()
    expect(chat.page.get_by_role("combobox", name=chat.t("settings.model"))).to_have_value("second")


def test_the_context_meter(chat: Chat) -> None:
    chat.ask("hello")
    meter = chat.button("meter.label")
    expect(meter).to_be_visible()
    meter.click()
    expect(chat.page.locator("#meter-details")).to_be_visible()


def test_the_page_of_the_operator(chat: Chat, served: Served, shoot: Callable[..., object]) -> None:
    logging.getLogger("glm4.tests").error("something went <b>wrong</b> here")
    chat.ask("hello")
    chat.button("operator.title").click()
    dialog = chat.page.get_by_role("dialog", name=chat.t("operator.title"))
    models = dialog.get_by_role("region", name=chat.t("operator.models"))
    expect(models.get_by_role("rowheader", name="scripted")).to_be_visible()
    expect(models.get_by_role("rowheader", name="second")).to_be_visible()
    expect(dialog).to_contain_text("something went <b>wrong</b> here")
    expect(dialog.locator("svg").first).to_be_visible()
    assert dialog.get_by_role("link", name="/metrics").get_attribute("href") == "metrics"
    shoot(chat.page, "operator")
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    chat.page.goto(f"{served.url}/ui#/operator")
    expect(dialog).to_be_visible()
