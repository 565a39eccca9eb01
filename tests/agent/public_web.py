"""The browser on an internet of its own, with public addresses and the policy as it comes; prints what it saw.

unshare --map-root-user --net python public_web.py      (with tests/ on the import path)

Another machine (`public_network.py`) has the pages, and a search engine shaped like SearXNG is here, on loopback, where
only the operator's setting may lead. So is a service that nobody may reach.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from browsing import article, ask, context, html

from glm4.agent.tool import Sources
from glm4.agent.tools.browser import BrowserTool
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from public_network import HERE, THERE, THERE_V6, another_machine
from web_sites import Names, page, redirect, site

NAMES = {
    "pictures.test": [[THERE_V6, THERE]],
    "rebind.test": [[THERE], ["127.0.0.1"]],
    "myself.test": [[HERE]],
    **{literal: [[literal]] for literal in (THERE, HERE, "127.0.0.1", "169.254.169.254")},
}
ANSWERS = {
    "/good": html(article("<p>The good page links <a href='/next'>on</a>.</p>", "Good")),
    "/next": html(article("", "Next")),
    "/to-https": redirect("https://pictures.test/next"),
    "/to-loopback": redirect("http://127.0.0.1/secret"),
    "/to-engine": redirect("http://127.0.0.1:8888/search"),
}
RESULTS = (
    "http://pictures.test/good", "http://pictures.test/to-https", "http://pictures.test/to-loopback",
    "http://127.0.0.1/secret", "http://169.254.169.254/latest/meta-data", f"http://{HERE}/secret",
    "http://pictures.test/to-engine",
)  # fmt: skip


def serve() -> None:
    """Be the other machine, until the input ends."""
    with ExitStack() as stack:
        for address in (THERE, THERE_V6):
            stack.enter_context(site(ANSWERS, address=address, port=80))
        stack.enter_context(site(ANSWERS, address=THERE, port=443, secure=True))
        print("serving", flush=True)
        sys.stdin.read()


def browse() -> dict[str, object]:
    """A search, its results, a link, a name that rebinds."""
    sources = Sources()
    fetcher = Fetcher(FetchPolicy(), resolve=Names(NAMES))
    tool = BrowserTool(search="searxng:http://127.0.0.1:8888", fetcher=fetcher)
    calls = (
        'search("words")', f"mclick({list(range(len(RESULTS)))})", 'open_url("http://pictures.test/good")',
        "mclick([0])",
        'open_url("http://rebind.test/good")', 'open_url("http://rebind.test/next")', 'open_url("http://myself.test/x")',
    )  # fmt: skip
    seen = [
        [(one.metadata, one.text) for one in ask(tool, call, context(sources)).observations] for call in calls
    ]  # fmt: skip
    tool.close()
    return {"seen": seen, "sources": [source.url for source in sources.all()]}


def main() -> None:
    """Build the network, browse, print."""
    results = [{"url": url, "title": f"Result {index}", "content": "…"} for index, url in enumerate(RESULTS)]
    listed = page(json.dumps({"results": results}).encode(), media_type="application/json")
    with (
        another_machine(__file__),
        site({"/secret": html("secret")}, address="0.0.0.0", port=80) as secret,
        site({"/search?q=words&format=json": listed}, port=8888) as searched,
    ):
        found = browse()
        asked = [len(secret.requests), len(searched.requests)]
    print(json.dumps({**found, "asked": asked}))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        print("here", flush=True)
        sys.stdin.readline()
        serve()
    else:
        main()
