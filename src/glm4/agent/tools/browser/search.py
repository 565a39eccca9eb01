"""Search engines, behind one function: words → results. A new one is a class and a row of the table at the foot.

A setting names an engine: `none`, `ddgs`, `searxng:http://127.0.0.1:8888`, `tavily`, `brave`. What an engine answers is
written by strangers, twice: types are checked, texts are cut, and what cannot be opened is left out.

Not covered: what an engine learns from the words that a model searches for; where its results lead (the fetcher decides
whether that is opened). `ddgs` asks public search engines with an HTTP client of its own, and is for personal use:
those engines limit and block such programs.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from glm4.agent.tools.browser.visible import visible_line
from glm4.agent.tools.endpoint import Endpoint, ServiceError
from glm4.errors import InvalidRequestError, shown
from glm4.multimodal.addresses import AddressError, parse_url

SETTING = "GLM4_SEARCH"
"""The environment variable with the setting, where no other is given."""

_MAX_SNIPPET = 400
_MAX_TEXT = 20_000
_RANGES = ((1, "day"), (7, "week"), (31, "month"), (366, "year"))


@dataclass(frozen=True)
class Result:
    """A page that an engine found: an address that can be parsed, and texts of one line."""

    url: str
    title: str
    host: str
    snippet: str = ""


class SearchEngine(Protocol):
    """Searches the web. Thread-safe."""

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """At most `most` results, best first.

        Args:
            recency_days: how old pages may be; engines take the next longer period they know.

        Raises:
            ServiceError: the engine failed, or there is none.
        """


def open_search(
    setting: str | None = None, key: str | None = None, environment: Mapping[str, str] = os.environ
) -> SearchEngine:
    """The engine of a setting.

    Args:
        setting: `NAME` or `NAME:URL`; None: that of `GLM4_SEARCH`, or `none`.
        key: of the service; None: that of the engine's environment variable.

    Raises:
        InvalidRequestError: there is no such engine, or its address or key is missing.
        MissingExtraError: its package is not installed.
    """
    setting = (setting or environment.get(SETTING) or "none").strip()
    if setting.lower().startswith(("http://", "https://")):
        setting = f"searxng:{setting}"
    name, _, url = setting.partition(":")
    row = ENGINES.get(name.lower())
    if row is None:
        raise InvalidRequestError(
            f"there is no search engine {shown(name)}; there are {', '.join(ENGINES)} (searxng:URL with its address)",
            param="search",
        )
    key = key or (environment.get(row.key_variable) if row.key_variable else None)
    if row.key_variable and not key:
        raise InvalidRequestError(
            f"{name} needs a key; set the environment variable {row.key_variable}", param="search"
        )
    return row.open(url, (key or "").strip())


class NoSearch:
    """There is no engine."""

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """Say so."""
        raise ServiceError(
            "searching is not set up here, so nothing was searched for; open a page by its address, or tell the user"
            f" that whoever runs this program can choose an engine ({SETTING}=searxng:URL, ddgs, tavily or brave)"
        )


class SearXNG:
    """An instance of SearXNG, by its JSON API. https://docs.searxng.org/dev/search_api.html"""

    def __init__(self, url: str) -> None:
        if not url:
            raise InvalidRequestError("searxng needs its address: searxng:http://127.0.0.1:8888", param="search")
        url = url.rstrip("/")
        self._endpoint = Endpoint(
            url if url.endswith("/search") else f"{url}/search", name="the search engine (SearXNG)",
            advice="check its address, and that its settings.yml has json in search.formats",
        )  # fmt: skip

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """See `SearchEngine`."""
        asked = {"q": query, "format": "json", **_given("time_range", _range(recency_days))}
        answer = self._endpoint.ask(f"?{urlencode(asked)}")
        return _results(_at(answer, "results"), ("url", "title", "content"), most, self._endpoint)


class Tavily:
    """https://docs.tavily.com/documentation/api-reference/endpoint/search"""

    def __init__(self, url: str, key: str) -> None:
        self._endpoint = Endpoint(
            url or "https://api.tavily.com/search", name="the search engine (Tavily)",
            advice="check TAVILY_API_KEY and its quota (HTTP 401, 429, 432)",
            headers={"Authorization": f"Bearer {key}"},
        )  # fmt: skip

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """See `SearchEngine`."""
        asked = {"query": query, "max_results": most, **_given("time_range", _range(recency_days))}
        return _results(
            _at(self._endpoint.ask(body=asked), "results"), ("url", "title", "content"), most, self._endpoint
        )


class Brave:
    """https://api-dashboard.search.brave.com/app/documentation/web-search"""

    def __init__(self, url: str, key: str) -> None:
        self._endpoint = Endpoint(
            url or "https://api.search.brave.com/res/v1/web/search", name="the search engine (Brave)",
            advice="check BRAVE_API_KEY and its quota (HTTP 401, 422, 429)", headers={"X-Subscription-Token": key},
        )  # fmt: skip

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """See `SearchEngine`."""
        period = {"day": "pd", "week": "pw", "month": "pm", "year": "py"}.get(_range(recency_days) or "")
        asked = {"q": query[:400], "count": most, "text_decorations": "false", **_given("freshness", period)}
        answer = self._endpoint.ask(f"?{urlencode(asked)}")
        found = _at(_at(answer, "web"), "results") if _at(answer, "web") is not None else []
        return _results(found, ("url", "title", "description"), most, self._endpoint)


class PublicEngines:
    """Public engines through the package ddgs, without a key."""

    def __init__(self) -> None:
        from glm4.system.extras import Package, require_packages

        require_packages("the search engine ddgs", "browser", (Package("ddgs", least="9.10"),))

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        """See `SearchEngine`."""
        import ddgs
        from ddgs.exceptions import DDGSException

        limit = (_range(recency_days) or "")[:1] or None
        try:
            found = ddgs.DDGS(timeout=10).text(query, timelimit=limit, max_results=most)
        except DDGSException as error:
            if "No results" in str(error):
                return []
            raise ServiceError(
                "the search engines did not answer, or refuse programs; wait and try again, or tell the user that"
                " another engine can be chosen"
            ) from None
        return _results(found, ("href", "title", "body"), most, None)


def _range(days: int | None) -> str | None:
    """The shortest period that is long enough."""
    return None if days is None else next((name for most, name in _RANGES if days <= most), None)


def _given(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}


def _at(answer: Any, name: str) -> Any:
    return answer.get(name) if isinstance(answer, Mapping) else None


def _results(found: Any, keys: tuple[str, str, str], most: int, endpoint: Endpoint | None) -> list[Result]:
    """What is a result among what came; an address counts once."""
    if not isinstance(found, list):
        problem = "its answer has no list of results"
        raise ServiceError(f"the search engine failed: {problem}") if endpoint is None else endpoint.error(problem)
    results: dict[str, Result] = {}
    for raw in found:
        if len(results) == most:
            break
        url, title, snippet = (value if isinstance(value := _at(raw, key), str) else "" for key in keys)
        try:
            target = parse_url(url)
        except AddressError:
            continue
        title = visible_line(html.unescape(title[:_MAX_TEXT])) or target.host
        snippet = visible_line(html.unescape(snippet[:_MAX_TEXT]), _MAX_SNIPPET)
        results.setdefault(target.url, Result(target.url, title, target.host, snippet))
    return list(results.values())


@dataclass(frozen=True)
class EngineRow:
    """An engine.

    Attributes:
        open: from the URL of the setting and the key, which are empty if not given.
        summary: one line for users.
        key_variable: the environment variable with its key, if it needs one.
    """

    open: Callable[[str, str], SearchEngine]
    summary: str
    key_variable: str | None = None


ENGINES: dict[str, EngineRow] = {
    "none": EngineRow(lambda url, key: NoSearch(), "No searching; pages are opened by their address."),
    "searxng": EngineRow(lambda url, key: SearXNG(url), "An instance of SearXNG: searxng:URL."),
    "ddgs": EngineRow(lambda url, key: PublicEngines(), "Public search engines, without a key; for personal use."),
    "tavily": EngineRow(Tavily, "Tavily's API.", "TAVILY_API_KEY"),
    "brave": EngineRow(Brave, "Brave's API.", "BRAVE_API_KEY"),
}
