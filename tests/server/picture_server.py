"""A real server whose model sees, with random weights, and a site that it may fetch pictures from."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from glm4.llm import LLM
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from glm4.multimodal.image import encode_picture
from glm4.open_model import open_model
from live import LiveServer, config, serve
from vision_folder import write_vision_folder

CAT, DOG = (encode_picture(np.random.default_rng(n).integers(0, 256, (40, 60, 3), dtype=np.uint8)) for n in (1, 2))
HOST = "pictures.test"
WAIT = 60.0


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{in_base64(data)}"


def image(url: str, **more: Any) -> dict[str, Any]:
    """OpenAI's part."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def ask(*urls: str, words: str = "what is it?") -> list[dict[str, Any]]:
    """A conversation of one turn in OpenAI's form."""
    return [{"role": "user", "content": [{"type": "text", "text": words}, *map(image, urls)]}]


class Site(ThreadingHTTPServer):
    """Has a picture, a page, redirects, and a path that never answers.

    Attributes:
        over: ends the waiting.
        asked: paths, as they came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.over = threading.Event()
        self.asked: list[str] = []

    def at(self, path: str, host: str = HOST) -> str:
        return f"http://{host}:{self.server_port}{path}"


class _Answer(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/hangs":
            self.server.over.wait(WAIT)
            return
        if self.path == "/to-private":
            self._send(302, "text/plain", b"", self.server.at("/cat.png", "127.0.0.1"))
        elif self.path == "/cat.png":
            self._send(200, "image/png", CAT)
        elif self.path == "/broken.png":
            self._send(200, "image/png", CAT[:200])
        else:
            self._send(200, "text/html", b"<html>")

    def _send(self, status: int, kind: str, body: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to be read."""


@contextmanager
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _resolve(host: str, port: int) -> Sequence[str]:
    """Where names are: a host that may be private, and one with a public and a private address."""
    return {HOST: ["127.0.0.1"], "two.test": ["93.184.216.34", "127.0.0.1"], "127.0.0.1": ["127.0.0.1"]}.get(host, [])


def seeing_llm(folder: Path, pictures: Site | None = None, **options: Any) -> LLM:
    """A model that sees; with a site, pictures are fetched from there, and from every public host."""
    chosen = {"dtype": "fp32", "num_threads": 1, "max_num_seqs": 8, "max_model_len": 1024, **options}
    opened = open_model(str(write_vision_folder(folder)), options=chosen)
    images = opened.processor.images
    assert images is not None
    if pictures is not None:
        # The second port has nobody.
        policy = FetchPolicy(private_hosts=(HOST,), ports=(pictures.server_port, 9), connect_timeout=WAIT,
                             total_timeout=WAIT)  # fmt: skip
        images = replace(images, fetcher=Fetcher(policy, resolve=_resolve))
    llm = LLM.__new__(LLM)
    llm._start(replace(opened, processor=replace(opened.processor, images=images)))
    return llm


@contextmanager
def seeing_server(
    folder: Path, pictures: Site | None = None, *, keys: tuple[str, ...] = (), **options: Any
) -> Iterator[LiveServer]:
    with serve(
        config("tiny", "alias", api_keys=keys, allowed_origins=("localhost",)), seeing_llm(folder, pictures, **options)
    ) as running:
        yield running
