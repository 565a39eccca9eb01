"""The page about the API: complete in itself, strict about what may run on it, and shipped with the package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from glm4.server.pages.docs import PAGES
from live import config, serve
from scripted_llm import scripted_llm

NAMES = {page.file.name for page in PAGES}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Without the key that everything else needs."""
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nx")
    with serve(config("tiny", api_keys=("a-secret-key",)), llm) as live, live.client() as made:
        yield made


def static(name: str) -> str:
    return (resources.files("glm4.server.pages") / "docs_page" / name).read_text(encoding="utf-8")


def test_the_root_leads_to_the_page(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")
    assert client.get("/", follow_redirects=True).text == static("docs.html")


def test_the_page_may_load_its_own_files_only(client: httpx.Client) -> None:
    for page in PAGES:
        answer = client.get(page.path)
        assert answer.status_code == 200
        assert answer.content == page.file.read_bytes()
        assert answer.headers["content-type"] == f"{page.media_type}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}


def test_everything_the_page_names_is_served(client: httpx.Client) -> None:
    page = static("docs.html")
    for target in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert client.get(f"/{target}").status_code == 200, target
    for name in NAMES:
        assert "//" not in re.sub(r"^\s*//.*$", "", static(name), flags=re.MULTILINE), f"{name} names another place"
    assert not re.search(r"<script>|style=|\son\w+=", page), "the policy forbids what stands in the page itself"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", static("docs.js"))


def test_the_script_and_the_page_agree() -> None:
    page, script = static("docs.html"), static("docs.js")
    assert set(re.findall(r'byId\("(\w+)"\)', script)) == set(re.findall(r'\bid="(\w+)"', page))
    tables = re.findall(r"  (?:en|zh): \{(.*?)\n  \},", script, re.DOTALL)
    english, chinese = (set(re.findall(r'(?:^ *|", )(\w+): "', table, re.MULTILINE)) for table in tables)
    assert english == chinese
    used = set(re.findall(r'say\("(\w+)"\)', script)) | set(re.findall(r'data-text="(\w+)"', page))
    assert used == english


def test_the_files_lie_in_the_package() -> None:
    folder = Path(str(resources.files("glm4.server.pages"))) / "docs_page"
    assert {path.name for path in folder.iterdir()} == NAMES
