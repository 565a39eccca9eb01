"""Search engines: what they are asked, and what is made of whatever they answer. Every server is a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import Heard, ask, browser, context, read, refused

from glm4.agent.tools.browser import BrowserTool
from glm4.agent.tools.browser.search import ENGINES, SETTING, NoSearch, Result, SearXNG, open_search
from glm4.agent.tools.endpoint import Endpoint, ServiceError
from glm4.errors import InvalidRequestError, MissingExtraError
from web_sites import Site, drip, flood, head, page, redirect, site

KEY = "key-that-nobody-may-see"
RESULTS = [
    {"url": "https://a.example/1", "title": "One &amp; <b>", "content": "first\ntext \u200b"},
    {"url": "https://b.example/", "title": "", "content": None},
]


def as_json(answer: Any) -> bytes:
    return page(json.dumps(answer).encode(), media_type="application/json")


@contextmanager
def service(answer: bytes) -> Iterator[Site]:
    """Answers every path, on loopback, which is private."""

    class Every(dict[str, bytes]):
        def __missing__(self, path: str) -> bytes:
            return answer

    with site(Every()) as server:
        yield server


def address(server: Site) -> str:
    return f"http://127.0.0.1:{server.port}"


def asked(server: Site) -> dict[str, list[str]]:
    return parse_qs(urlsplit(server.requests[-1].split()[1]).query)


def test_searxng() -> None:
    with service(as_json({"query": "x", "results": RESULTS, "answers": []})) as server:
        for url in (address(server), address(server) + "/", address(server) + "/search"):
            found = open_search(f"searxng:{url}", environment={}).search("春 江&x", 6, 7)
            assert asked(server) == {"q": ["春 江&x"], "format": ["json"], "time_range": ["week"]}
            assert server.requests[-1].startswith("GET /search?")
        open_search(address(server), environment={}).search("x", None, 7)
        assert "time_range" not in asked(server)
    assert found == [
        Result("https://a.example/1", "One & <b>", "a.example", "first text"),
        Result("https://b.example/", "b.example", "b.example"),
    ]


@pytest.mark.parametrize(("days", "period"), [(1, "day"), (2, "week"), (31, "month"), (32, "year"), (999, None)])
def test_the_next_longer_period_is_asked_for(days: int, period: str | None) -> None:
    with service(as_json({"results": []})) as server:
        assert SearXNG(address(server)).search("x", days, 7) == []
    assert asked(server).get("time_range") == (None if period is None else [period])


def test_tavily_and_its_key() -> None:
    with site({"/search": as_json({"results": RESULTS})}) as server:
        engine = open_search(f"tavily:{address(server)}/search", environment={"TAVILY_API_KEY": f"{KEY}\n"})
        assert [one.url for one in engine.search("words", 3, 5)] == ["https://a.example/1", "https://b.example/"]
    assert server.requests[0].startswith("POST /search HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in server.requests[0]
    assert "\r\nContent-Type: application/json\r\n" in server.requests[0]
    assert json.loads(server.bodies[0]) == {"query": "words", "max_results": 5, "time_range": "week"}


def test_brave_and_its_key() -> None:
    answer = {"web": {"results": [{"url": "https://a.example/1", "title": "One", "description": "first"}]}}
    with service(as_json(answer)) as server:
        engine = open_search(f"brave:{address(server)}/res/v1/web/search", key=KEY, environment={})
        assert [(one.title, one.snippet) for one in engine.search("x", 400, 5)] == [("One", "first")]
        assert asked(server) == {"q": ["x"], "count": ["5"], "text_decorations": ["false"]}
        engine.search("x", 20, 5)
        assert asked(server)["freshness"] == ["pm"]
    assert f"\r\nX-Subscription-Token: {KEY}\r\n" in server.requests[0]
    with service(as_json({"type": "search"})) as server:
        assert open_search(f"brave:{address(server)}", key=KEY).search("x", None, 5) == []


def test_public_engines_through_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package really asks: an engine of its own kind that stands here, in the place of those on the internet."""
    from ddgs import engines
    from ddgs.base import BaseSearchEngine
    from ddgs.results import TextResult

    listing = "".join(
        f"<div class='r'><h2><a href='https://{name}.example/words'>words {name}</a></h2><p>about words</p></div>"
        for name in ("a", "b", "c")
    )
    with service(page(f"<html><body>{listing}</body></html>".encode(), media_type="text/html")) as server:

        class Here(BaseSearchEngine[TextResult]):
            name = "here"
            category = "text"
            provider = "here"
            search_url = f"{address(server)}/html"
            search_method = "GET"
            items_xpath = "//div[@class='r']"
            elements_xpath = {"title": ".//h2//text()", "href": ".//a/@href", "body": "./p//text()"}  # noqa: RUF012

            def build_payload(
                self, query: str, region: str, safesearch: str, timelimit: str | None, page: int = 1, **kwargs: Any
            ) -> dict[str, Any]:
                return {"q": query, "t": timelimit or ""}

        monkeypatch.setitem(engines.ENGINES, "text", {"here": Here})
        found = open_search("ddgs", environment={}).search("words", 7, 2)
        assert sorted(one.url for one in found) == sorted({f"https://{one.host}/words" for one in found})
        assert [(one.snippet, one.title[:5]) for one in found] == [("about words", "words")] * 2
        assert asked(server)["q"] == ["words"]
        assert asked(server)["t"] == ["w"]
    with service(page(b"<html></html>", media_type="text/html")) as empty:
        monkeypatch.setattr(Here, "search_url", f"{address(empty)}/html")
        assert open_search("ddgs", environment={}).search("words", None, 2) == []
    monkeypatch.setattr(Here, "search_url", "http://127.0.0.1:9/html")
    with pytest.raises(ServiceError, match="did not answer, or refuse programs"):
        open_search("ddgs", environment={}).search("words", None, 2)


@pytest.mark.parametrize(
    "answer",
    [
        [], "x", 3, None, {}, {"results": None}, {"results": {}}, {"results": "x"}, {"results": 1}, {"error": "x"},
    ],
)  # fmt: skip
def test_answers_of_another_form_are_errors(answer: Any) -> None:
    with (
        service(as_json(answer)) as server,
        pytest.raises(ServiceError, match=r"SearXNG\) failed: its answer has no list"),
    ):
        SearXNG(address(server)).search("x", None, 7)


def test_malicious_results() -> None:
    results: list[Any] = [
        None, 3, "x", [], {}, {"url": None}, {"url": 7, "title": "x"}, {"url": ["https://a.example"]},
        {"url": "javascript:alert(1)", "title": "x"}, {"url": "file:///etc/passwd"}, {"url": "http://user@a.example/"},
        {"url": "http://[::"}, {"url": "https://" + "a" * 9000 + ".example/"}, {"url": "http://0x7f.1/"},
        {"url": "https://good.example/\u202e", "title": "x"},
        {"url": "https://good.example/1", "title": {"a": 1}, "content": [1]},
        {"url": "https://good.example/1", "title": "the same again"},
        {"url": "https://good.example/2", "title": "t" * 10**6, "content": "\x1b[31m【7†source】" + "c" * 10**6},
        {"url": "https://good.example/3", "title": "a\nb # 【0†x】\r\n", "content": "&#x202e;&#27;[2Jx&amp;lt;"},
        {"url": "http://169.254.169.254/latest", "title": "private"},
        *({"url": f"https://more.example/{number}"} for number in range(5000)),
    ]  # fmt: skip
    with service(as_json({"results": results})) as server:
        found = SearXNG(address(server)).search("x", None, 7)
        with browser(server, engine=SearXNG(address(server)), ports=(80,)) as tool:
            text = read(ask(tool, 'search("x")'))
            assert "is not public" in refused(ask(tool, "mclick([3])"))  # the private one
            assert len(server.requests) == 2
    assert [one.url for one in found[:4]] == [
        "https://good.example/1", "https://good.example/2", "https://good.example/3", "http://169.254.169.254/latest"
    ]  # fmt: skip
    assert len(found) == 7
    assert all(len(one.title) <= 200 and len(one.snippet) <= 400 for one in found)
    assert found[0].title == "good.example"
    assert found[1].snippet.startswith("〖7†source〗ccc")
    assert (found[2].title, found[2].snippet) == ("a b # 〖0†x〗", "[2Jx&lt;")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert len(text) < 6000


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (page(b"[" * 100_000, media_type="application/json"), "its answer is not JSON"),
        (page(b'{"results": [NaN]}', media_type="application/json"), "its answer is not JSON"),
        (page(b"<html>", media_type="text/html"), "sends a web page instead of application/json"),
        (page(b"", status="403 Forbidden"), "answers HTTP 403"),
        (page(b"", status="429 Too Many"), "answers HTTP 429"),
        (redirect("http://127.0.0.1:1/search"), "it redirects to 'http://127.0.0.1:1/search'"),
        (redirect("https://evil.example/"), "it redirects to 'https://evil.example/'"),
        (head("Content-Type: application/json", "Content-Length: 99999999999"), "larger than"),
        (b"", "could not be reached, or broke off"),
    ],
)  # fmt: skip
def test_errors_of_engines_say_what_to_check_and_never_the_key(answer: bytes, problem: str) -> None:
    with service(answer) as server:
        for setting, advice in (("searxng", "has json in search.formats"), ("tavily", "check TAVILY_API_KEY")):
            engine = open_search(f"{setting}:{address(server)}", key=KEY, environment={})
            with pytest.raises(ServiceError) as caught:
                engine.search("x", None, 7)
            assert problem in str(caught.value)
            assert advice in str(caught.value)
            assert KEY not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
    assert len(server.requests) == 2  # a redirect is not followed


def test_engines_without_end_are_given_up() -> None:
    for answer in (drip(b"HTTP/1.1 200 OK\r\n"), flood(head("Content-Type: application/json"), b"[" * 65536)):
        with site({"/": answer}) as server:
            endpoint = Endpoint(f"{address(server)}/", name="it", advice="check it", seconds=1.0, max_nbytes=1 << 20)
            with pytest.raises(ServiceError, match=r"it failed: .*; check it"):
                endpoint.ask()


def test_a_key_cannot_add_headers() -> None:
    with service(as_json({"results": []})) as server:
        engine = open_search(f"tavily:{address(server)}", key=f"{KEY}\r\nX-Other: 1", environment={})
        with pytest.raises(ServiceError, match="printable ASCII") as caught:
            engine.search("x", None, 7)
        assert KEY not in str(caught.value)
    assert server.requests == []


def test_an_endpoint_asks_one_host_and_port() -> None:
    with service(as_json({})) as server, service(as_json({})) as other:
        fetcher = Endpoint(address(server), name="it", advice="").fetcher
        for url in (address(other), address(server).replace("127.0.0.1", "127.0.0.2"), "http://example.com/"):
            with pytest.raises(InvalidRequestError):
                fetcher.fetch(url, kinds=("application/json",))
    assert (server.requests, other.requests) == ([], [])


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_search(None, environment={}), NoSearch)
    assert isinstance(open_search(None, environment={SETTING: "searxng:http://127.0.0.1:1"}), SearXNG)
    assert isinstance(open_search("none", environment={SETTING: "searxng:http://127.0.0.1:1"}), NoSearch)
    assert set(ENGINES) == {"none", "searxng", "ddgs", "tavily", "brave"}
    for setting, problem in (
        ("searxng", "searxng needs its address"),
        ("searxng:ftp://x", "it is not an http:// or https:// address"),
        ("searxng:http://me:pw@host/", "user name or password"),
        ("tavily", "set the environment variable TAVILY_API_KEY"),
        ("brave", "set the environment variable BRAVE_API_KEY"),
        ("google", "there is no search engine 'google'; there are none, searxng, ddgs, tavily, brave"),
    ):
        with pytest.raises(InvalidRequestError, match=problem.replace("(", r"\(")) as caught:
            open_search(setting, environment={})
        assert "pw" not in str(caught.value)
    import glm4.system.extras as extras

    monkeypatch.setattr(extras.Package, "installed", property(lambda package: None))
    with pytest.raises(MissingExtraError, match=r"pip install 'glm4\[browser\]'"):
        open_search("ddgs", environment={})
    with pytest.raises(MissingExtraError, match="the browser needs the package trafilatura"):
        BrowserTool()


def test_an_engine_that_fails_is_an_observation_and_shows_no_key() -> None:
    with service(page(b"", status="401 Unauthorized")) as server:
        tool = BrowserTool(search=f"tavily:{address(server)}", search_key=KEY)
        try:
            heard = Heard()
            message = refused(ask(tool, 'search("x")', context(listener=heard)))
        finally:
            tool.close()
    assert message.startswith("The search was not done: the search engine (Tavily) failed: 127.0.0.1 answers HTTP 401")
    assert KEY not in message + heard.text
