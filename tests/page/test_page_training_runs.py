"""The page of training runs in a browser: it follows a run that goes on, in both languages and themes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_actions import catalog
from page_browser import Watch, expect, save_screenshot, serious_findings, sideways
from page_server import Served, page_server

from glm4.server.page.static import TRAINING
from run_folders import write_run

pytestmark = pytest.mark.page


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    write_run(tmp_path / "runs" / "poems", steps=60)
    write_run(tmp_path / "runs" / "<i>older", state="failed", error="<b>the disk is full</b>")
    with page_server(tmp_path / "server", {}, training=tmp_path / "runs") as served:
        yield served


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("zh", "dark")])
def test_a_run_is_followed(
    language: str, scheme: str, served: Served, tmp_path: Path, person: Callable[..., Watch], shots: Path
) -> None:
    words: dict[str, str] = catalog(language) | json.loads((TRAINING / f"{language}.json").read_text())
    options: Any = {"locale": language, "color_scheme": scheme}
    page = person(served.url, **options).page()
    page.get_by_role("button", name=words["operator.title"], exact=True).click()
    page.get_by_role("link", name=words["operator.training"], exact=True).click()
    page.wait_for_url("**/training")
    expect(page.get_by_role("heading", name=words["training.title"], exact=True)).to_be_visible()
    run = page.get_by_label(words["training.run"], exact=True)
    run.select_option("poems")
    expect(page.get_by_role("status")).to_have_text(words["training.state_running"])
    expect(page.locator(".plot-area svg polyline")).to_have_count(4)
    expect(page.locator("#samples article")).to_have_count(2)
    assert page.locator("#samples b").count() == 0  # what a model wrote is text
    with (tmp_path / "runs" / "poems" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss": 0.0123}\n')
    expect(page.get_by_text("0.0123", exact=True).first).to_be_visible(timeout=30_000)
    assert not serious_findings(page)
    save_screenshot(page, shots, f"training {language} {scheme}")
    page.set_viewport_size({"width": 375, "height": 700})
    assert sideways(page) <= 0
    run.select_option("<i>older")
    expect(page.get_by_text("<b>the disk is full</b>", exact=True)).to_be_visible()
