"""What vLLM's entrypoint tests import as `tests.utils`: a server to talk to, started through `warm_start`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anthropic
import openai
import requests

PEERS = Path(os.environ["GLM4_PEERS"])
HERE = Path(__file__).resolve().parent
VLLM_PATH = Path.cwd()
ROCM_EXTRA_ARGS: list[str] = []
ROCM_ENV_OVERRIDES: dict[str, str] = {}

_running: list[RemoteOpenAIServer] = []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RemoteOpenAIServer:
    """A server of ours under the name the suite knows.

    Args:
        vllm_serve_args: flags of `vllm serve`, see `vllm_server`.
    """

    DUMMY_API_KEY = "token-abc123"

    def __init__(
        self,
        model: str,
        vllm_serve_args: list[str],
        *,
        env_dict: dict[str, str] | None = None,
        seed: int = 0,
        auto_port: bool = True,
        max_wait_seconds: float | None = None,
        override_hf_configs: dict[str, Any] | None = None,
    ) -> None:
        args = [str(one) for one in vllm_serve_args]
        self.host = "127.0.0.1"
        self.port = int(args[args.index("--port") + 1]) if "--port" in args else free_port()
        if "--port" not in args:
            args += ["--port", str(self.port)]
        start = [sys.executable, "-S", "-E", str(HERE / "warm_start.py"), str(PEERS / "socket"), "vllm_server"]
        self.proc = subprocess.Popen([*start, model, *args], env={**os.environ, **(env_dict or {})})
        _running.append(self)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            if time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError("the server does not answer")
            if self.proc.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.proc.returncode}")
            try:
                if requests.get(self.url_for("health"), timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self in _running:
            _running.remove(self)
        self.proc.terminate()
        try:
            self.proc.wait(15)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()

    @property
    def url_root(self) -> str:
        return f"http://{self.host}:{self.port}"

    def url_for(self, *parts: str) -> str:
        return self.url_root + "/" + "/".join(parts)

    def get_client(self, **options: Any) -> openai.OpenAI:
        options.setdefault("timeout", 120)
        return openai.OpenAI(
            base_url=self.url_for("v1"), api_key=options.pop("api_key", self.DUMMY_API_KEY), max_retries=0, **options
        )

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        options.setdefault("timeout", 120)
        return openai.AsyncOpenAI(
            base_url=self.url_for("v1"), api_key=options.pop("api_key", self.DUMMY_API_KEY), max_retries=0, **options
        )

    def get_client_anthropic(self, **options: Any) -> anthropic.Anthropic:
        options.setdefault("timeout", 120)
        return anthropic.Anthropic(
            base_url=self.url_for(), api_key=options.pop("api_key", self.DUMMY_API_KEY), max_retries=0, **options
        )

    def get_async_client_anthropic(self, **options: Any) -> anthropic.AsyncAnthropic:
        options.setdefault("timeout", 120)
        return anthropic.AsyncAnthropic(
            base_url=self.url_for(), api_key=options.pop("api_key", self.DUMMY_API_KEY), max_retries=0, **options
        )


def end_all() -> None:
    """Stop whatever a failed fixture left running."""
    for server in list(_running):
        server.__exit__()
