"""A browser tool that reads the sites of a test: `pictures.test` is this machine, every other name has to be public."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glm4.agent.events import Channel
from glm4.agent.files import FileStore, StoredFile
from glm4.agent.tool import Invocation, Observation, Sources, ToolContext, ToolResult
from glm4.agent.tools.browser import BrowserTool
from glm4.agent.tools.browser.search import Result, SearchEngine
from web_sites import Names, Site, fetcher_of, page

FILLER = "This sentence only makes the page long enough to be an article, as those that people read are. " * 6


class Heard:
    """What a call says for people."""

    def __init__(self) -> None:
        self.text = ""
        self.files: list[StoredFile] = []

    def output(self, text: str, channel: Channel) -> None:
        self.text += text

    def file(self, file: StoredFile) -> None:
        self.files.append(file)


class Listed:
    """A search engine that found what a test says."""

    def __init__(self, *urls: str) -> None:
        self.results = [Result(url, f"Page {index}", "pictures.test", "…") for index, url in enumerate(urls)]
        self.asked: list[tuple[str, int | None]] = []

    def search(self, query: str, recency_days: int | None, most: int) -> list[Result]:
        self.asked.append((query, recency_days))
        return self.results[:most]


def html(body: str | bytes, *headers: str, media_type: str | None = "text/html; charset=utf-8") -> bytes:
    """An answer with a web page."""
    return page(body.encode() if isinstance(body, str) else body, *headers, media_type=media_type)


def article(text: str = "", title: str = "A page") -> str:
    """A page with a main text."""
    return (
        f"<html><head><title>{title}</title></head><body><nav><a href='/nav'>menu</a></nav><article>"
        f"<h1>{title}</h1><p>{FILLER}</p>{text}</article></body></html>"
    )


@contextmanager
def browser(
    *sites: Site,
    resolve: Names | None = None,
    engine: SearchEngine | None = None,
    ports: tuple[int, ...] = (),
    chars: int = 12_000,
    max_nbytes: int = 4 << 20,
    total_timeout: float = 60.0,
) -> Iterator[BrowserTool]:
    """A tool whose fetcher has every check on, and knows the ports of these sites."""
    fetcher = fetcher_of(*sites, resolve=resolve, max_nbytes=max_nbytes, total_timeout=total_timeout, more_ports=ports)
    tool = BrowserTool(fetcher=fetcher, engine=engine, chars=chars)
    try:
        yield tool
    finally:
        tool.close()


def context(
    sources: Sources | None = None,
    files: FileStore | None = None,
    listener: Heard | None = None,
    seconds: float = 120.0,
) -> ToolContext:
    """Of a call that may take long, as machines that run tests are busy."""
    deadline = time.monotonic() + seconds
    return ToolContext(deadline, threading.Event(), listener or Heard(), sources or Sources(), files)


def ask(tool: BrowserTool, expression: str, given: ToolContext | None = None) -> ToolResult:
    """The result of a call as GLM-4 writes it."""
    return tool.run(Invocation("call", "simple_browser", expression, raw=True), given or context())


def ask_function(tool: BrowserTool, function: str, given: ToolContext | None = None, **arguments: object) -> ToolResult:
    """The result of a call as other models write it."""
    return tool.run(Invocation("call", function, json.dumps(arguments)), given or context())


def only(result: ToolResult) -> Observation:
    """The observation of a result that has one."""
    assert len(result.observations) == 1, result
    return result.observations[0]


def refused(result: ToolResult) -> str:
    """The text of a failure."""
    assert result.failed, result
    assert {one.metadata for one in result.observations} == {"system_error"}
    return "\n".join(one.text for one in result.observations)


def read(result: ToolResult) -> str:
    """The text of a success."""
    assert not result.failed, result
    return "\n\n".join(one.text for one in result.observations)


def body_of(observation: Observation) -> str:
    """What a page says, without what is said about it."""
    return observation.text.partition("\n\n")[2]


def metadata(observations: Sequence[Observation]) -> list[str]:
    return [one.metadata for one in observations]
