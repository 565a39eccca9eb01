"""Another client, whose streams must not change whatever others send."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import httpx

from live import LiveServer

_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "tell me everything"}],
    "temperature": 0,
    "max_tokens": 48,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 3,
    "stream": True,
}


class Neighbor:
    """Asks for the same greedy stream again and again, and keeps every distinct one."""

    def __init__(self, server: LiveServer) -> None:
        self.streams: Counter[str] = Counter()
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._server.client() as client:
            while not self._over.is_set():
                self.streams[self._stream(client)] += 1

    def _stream(self, client: httpx.Client) -> str:
        text = client.post("/v1/chat/completions", json=_REQUEST).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        content = "".join(choice["delta"].get("content") or "" for choice in choices)
        tokens = [token for choice in choices for token in (choice.get("logprobs") or {}).get("content") or []]
        return json.dumps([content, tokens])

    def __enter__(self) -> Neighbor:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
