"""A small web on this machine, with a search engine that answers as SearXNG does; for agent_tasks.py."""

from __future__ import annotations

import html
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HOST = "localhost"
_SNIPPET = 140

# Places and people are invented, so that no model knows the answers. The facts that are asked for stand below what a
# search shows of a page.
PAGES = {
    "/port-ellery": (
        "Port Ellery",
        "Port Ellery is a fishing town on the north coast with about 8,200 people. It grew around a natural harbor that"
        " stays free of ice in winter.\nThe harbor was deepened in 1874, and a railway reached the town in 1902. Today"
        " most people work in the fish market, in boat building and in tourism.\nEvery August the town holds a regatta"
        " with some sixty boats, and its museum shows nets, engines and models of ships.",
    ),
    "/ellery-lighthouse": (
        "Lighthouse of Port Ellery",
        "The lighthouse of Port Ellery stands at the end of the northern pier and guides ships past the sandbanks in"
        " front of the town. It is open to visitors in summer.\nIt was built of granite in 1889 by the engineer Ada"
        " Wexford. The tower is 43 meters tall and has 187 steps; its light can be seen from 28 kilometers away.\nIn"
        " 1971 the light became automatic, and the keeper's house is a cafe now.",
    ),
    "/cape-morrow-lighthouse": (
        "Cape Morrow lighthouse",
        "The Cape Morrow lighthouse is the oldest in the region and stands on a cliff, two hours on foot from the next"
        " village.\nThe tower is 29 meters tall. Its first lamp burned whale oil; the present one is electric. Storms"
        " have damaged the cliff, so the path is closed between November and March.",
    ),
    "/karlsen-bridge": (
        "Karlsen Bridge",
        "The Karlsen Bridge is a steel arch bridge across the river Aven. It connects the old town with the district"
        " of Sund and carries two tram lines.\nPlanning began in 1924, but money was short. The bridge was opened to"
        " traffic in 1931, named after the mayor Nils Karlsen. After a fire it was repaired in 1958, and its deck was"
        " renewed in 2004.\nAbout 31,000 people cross it every day.",
    ),
    "/aven": (
        "The river Aven",
        "The Aven rises in the Holm hills and reaches the sea after 212 kilometers. Salmon came back to it when the"
        " mills had closed.\nNine bridges cross the river. The longest one is the motorway bridge of 1978; the"
        " best known are the Mill Bridge and the Karlsen Bridge in the old town.",
    ),
    "/oat-bread": (
        "Brennan's oat bread",
        "Brennan's oat bread is a dark and moist loaf that keeps for a week. The recipe comes from a bakery that has"
        " made it for three generations.\nIngredients for one loaf: 350 grams of wheat flour, 150 grams of rolled oats,"
        " 320 milliliters of warm water, 10 grams of salt, 7 grams of dry yeast and two spoons of honey.\nMix"
        " everything, let it rest for an hour, fold it twice, and bake it for 45 minutes at 210 degrees.",
    ),
    "/rye-bread": (
        "Rye bread with caraway",
        "This rye bread needs a sourdough and some patience, but little work. Its crumb is dense and it tastes best on"
        " the second day.\nIngredients: 500 grams of rye flour, 400 milliliters of water, 12 grams of salt and a spoon"
        " of caraway. Bake it for an hour.",
    ),
    "/regattas": (
        "Regattas of the north coast",
        "Five towns of the north coast hold regattas between June and September. Most are for small sailing boats, and"
        " visitors are welcome everywhere.\nThe largest ones are those of Port Ellery in August and of Sund in July."
        " Places on the pier can be booked from May on.",
    ),
}  # fmt: skip


@contextmanager
def local_web() -> Iterator[int]:
    """Serve until the block ends; gives the port. `/search` is the engine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="local web")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/search":
            words = parse_qs(asked.query).get("q", [""])[0]
            found = {"results": _search(words, self.server.server_address[1])}  # type: ignore[index]
            self._answer(200, "application/json", json.dumps(found))
        elif asked.path in PAGES:
            self._answer(200, "text/html; charset=utf-8", _page(*PAGES[asked.path]))
        else:
            self._answer(404, "text/plain", "there is no such page")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nobody reads it."""


def _page(title: str, text: str) -> str:
    paragraphs = "".join(f"<p>{html.escape(one)}</p>" for one in text.split("\n"))
    menu = "<nav><a href='/port-ellery'>Home</a> <a href='/regattas'>Events</a></nav>"
    head = f"<head><title>{html.escape(title)}</title></head>"
    return f"<html>{head}<body>{menu}<article><h1>{html.escape(title)}</h1>{paragraphs}</article></body></html>"


def _search(query: str, port: object) -> list[dict[str, str]]:
    """Pages that have words of the query, those with most of them first; words of a title count three times."""
    words = set(re.findall(r"\w{3,}", query.lower()))
    scores = {
        path: sum(3 * (word in title.lower()) + (word in text.lower()) for word in words)
        for path, (title, text) in PAGES.items()
    }
    best = sorted((path for path in PAGES if scores[path]), key=lambda path: -scores[path])
    return [
        {"url": f"http://{HOST}:{port}{path}", "title": PAGES[path][0], "content": PAGES[path][1][:_SNIPPET]}
        for path in best
    ]
