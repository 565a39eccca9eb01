"""Choices live in the conversation; the meter, the plots of the operator, and what a search shows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_server import Served, page_server

pytestmark = pytest.mark.page
People = Callable[..., Watch]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = {"hello": "Hello.", "long": "word " * 755}
    with page_server(tmp_path_factory.mktemp("choices"), rules, model={"max_model_len": 4096}) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    chat = Chat(person(served.url)).ready()
    yield chat
    served.model.rest()


def stored(chat: Chat, served: Served, done: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The shown conversation, as soon as the server has what was chosen."""

    def now() -> dict[str, Any]:
        with served.client() as client:
            found: dict[str, Any] = client.get(f"/v1/agent/conversations/{chat.conversation}").json()["conversation"]
        return found

    chat.watch.until(chat.page, lambda: done(now()), "the choice arrives")
    return now()


def test_options_live_in_the_conversation_and_the_next_one_begins_with_them(chat: Chat, served: Served) -> None:
    chat.ask("hello")
    dialog = chat.settings()
    dialog.get_by_role("switch", name=served.functions, exact=True).check()
    temperature = dialog.get_by_label(chat.t("settings.temperature"), exact=True)
    expect(temperature).to_have_attribute("placeholder", "1")
    temperature.fill("0.25")
    stops = dialog.get_by_label(chat.t("settings.stop"), exact=True)
    stops.fill("END\na\\nb")
    stops.blur()
    found = stored(chat, served, lambda one: "stop" in one["params"]["sampling"])
    assert found["params"]["sampling"] == {"temperature": 0.25, "stop": ["END", "a\nb"]}
    assert [name.rpartition("/")[2] for name in found["params"]["tools"]] == [served.functions]
    chat.page.reload()
    dialog = chat.settings()
    expect(temperature).to_have_value("0.25")
    expect(dialog.get_by_role("switch", name=served.functions, exact=True)).to_be_checked()
    chat.close(dialog)
    chat.fresh()
    chat.ask("hello again")
    assert stored(chat, served, lambda one: True)["params"] == found["params"]
    chat.settings()
    chat.button("settings.reset").click()
    assert stored(chat, served, lambda one: not one["params"]["sampling"])["params"]["tools"]


def test_what_the_server_would_refuse_is_said_at_the_field_and_not_sent(chat: Chat, served: Served) -> None:
    chat.ask("hello")
    dialog = chat.settings()
    top_p = dialog.get_by_label(chat.t("settings.top_p"), exact=True)
    top_p.fill("1.5")
    top_k = dialog.get_by_label(chat.t("settings.top_k"), exact=True)
    top_k.fill("2.5")
    top_k.blur()
    expect(dialog.locator("#option-top_p-error")).to_have_text(chat.t("settings.out_of_range", min=0, max=1))
    expect(dialog.locator("#option-top_k-error")).to_contain_text(
        chat.t("settings.out_of_range_whole").partition("{")[0]
    )
    expect(top_p).to_have_attribute("aria-invalid", "true")
    seed = dialog.get_by_label(chat.t("settings.seed"), exact=True)
    seed.fill("7")
    seed.blur()
    assert stored(chat, served, lambda one: one["params"]["sampling"])["params"]["sampling"] == {"seed": 7}
    expect(top_p).to_have_value("1.5")  # what was refused can be mended


def test_the_meter_warns_of_a_full_context(chat: Chat) -> None:
    chat.ask("hello")
    meter = chat.page.get_by_role("button", name=chat.named("meter.label"))
    expect(meter).to_have_class(re.compile(r"^quiet meter\s*$"))
    chat.ask("long")
    expect(meter).to_have_class(re.compile("full"))
    meter.click()
    expect(chat.page.locator("#meter-details")).to_be_visible()
    chat.page.reload()
    expect(meter).to_have_class(re.compile("full"))


def test_the_operator_reads_load_and_errors_with_the_keyboard(chat: Chat) -> None:
    chat.ask("hello")
    logging.getLogger("glm4.server").error("the sky <b>fell</b>")
    before = chat.page.url
    chat.button("operator.title").click()
    dialog = chat.page.get_by_role("dialog", name=chat.t("operator.title"))
    expect(dialog.get_by_role("row").filter(has_text="scripted")).to_contain_text(chat.t("settings.state_ready"))
    plot = dialog.get_by_role("slider", name=chat.t("operator.speed"))
    expect(plot).to_have_attribute("aria-valuetext", re.compile(f"{chat.t('operator.generated')} [0-9]"))
    expect(plot.locator("polyline")).to_have_count(2)
    plot.focus()
    chat.page.keyboard.press("Home")
    expect(plot).to_have_attribute("aria-valuenow", "0")
    dialog.get_by_text(chat.t("operator.as_table")).first.click()
    expect(dialog.get_by_role("table", name=chat.t("operator.speed")).locator("tbody tr").first).to_be_visible()
    expect(dialog.locator(".errors pre")).to_have_text(["the sky <b>fell</b>"])
    dialog.get_by_label(chat.t("errors.words"), exact=True).fill("sea")
    expect(dialog.locator(".errors")).to_be_hidden()
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Escape")  # the first one may have emptied the field
    expect(dialog).to_be_hidden()
    expect(chat.page).to_have_url(before)


def test_a_message_of_another_branch_is_found_with_all_that_follows_it(chat: Chat) -> None:
    chat.ask("hello first")
    chat.ask("hello to the otter")
    chat.ask("hello again")
    chat.button("message.edit", chat.message(3)).click()
    box = chat.message(3).get_by_role("textbox")
    box.fill("hello to the badger")
    box.press("Enter")
    expect(chat.messages).to_have_count(4)
    chat.ended()
    search = chat.page.get_by_role("searchbox", name=chat.t("search.label"))
    search.fill("otter")
    chat.page.get_by_role("navigation").locator("mark").click()
    expect(chat.messages).to_have_count(6)
    expect(chat.message(3)).to_be_focused()
    search.fill("badger")
    chat.page.get_by_role("navigation").locator("mark").filter(has_text="badger").click()
    expect(chat.messages).to_have_count(4)
    expect(chat.message(3)).to_be_in_viewport()
