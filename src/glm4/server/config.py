"""`ServerConfig`: all settings of `glm4 serve`, validated."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4.errors import InvalidRequestError
from glm4.server.agent.config import AgentConfig

_METRIC_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
ANY_MODEL = "*"
"""A served name that matches any model name a client sends."""


@dataclass(frozen=True)
class ModelSpec:
    """One model to serve.

    Attributes:
        source: what `LLM` takes: a name, a folder or a GGUF file.
        names: what clients may call it; responses carry the first.
        options: keyword arguments of `LLM`.
        adapters: adapters to load with it, name → folder.
    """

    source: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        models: at least one; the first answers requests that do not name a model.
        host, port: where to listen; loopback by default.
        api_keys: any of these grants access; if empty, no key is needed.
        insecure: allow listening without a key on an address that other machines can reach.
        allowed_hosts: Host headers accepted in addition to loopback names (against DNS rebinding); "*" accepts all.
        allowed_origins: origins that browsers may call from (CORS); none by default.
        max_queue: requests that may wait in addition to those that run; more get 429.
        queue_timeout: seconds a request may wait before it gets 503.
        request_timeout: seconds a request may take in total; None means no limit.
        stall_timeout: seconds a client may leave a stream unread before it is disconnected.
        keep_alive: seconds of silence in a stream before a comment is sent.
        max_body_bytes: maximum size of a request body. The default has room for a picture of 32 MB in base64.
        max_memory: bytes for the whole process: weights, KV cache, requests and stored responses; None is what the
            machine or container has.
        max_connections: open connections; beyond that the one idle for the longest time is closed. It is lowered where
            the system allows fewer open files.
        header_timeout, body_timeout: seconds a request's headers, and then its body, may take to arrive.
        shutdown_timeout: seconds running requests get to finish after SIGTERM.
        store_path: SQLite file of stored responses; None keeps them in memory only.
        keep_responses: store responses at all; if not, a request that asks for it is refused.
        store_max_bytes, store_max_age: limits of that store, in bytes and seconds.
        allow_adapter_loading: let clients load adapters from folders on this machine.
        parse_special: read spellings of special tokens in raw prompts as these tokens, unless a request says otherwise.
        log_prompts: write prompts to the log; off by default.
        agent: what the assistant may use.
        ui: serve the page for people, at /ui.
        training: a run of `glm4 finetune`, or a folder of runs, that the page shows to the operator.
        metrics_prefix: prefix of metric names; "vllm" makes dashboards for vLLM work.
    """

    models: tuple[ModelSpec, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_queue: int = 256
    queue_timeout: float = 300.0
    request_timeout: float | None = None
    stall_timeout: float = 120.0
    keep_alive: float = 15.0
    max_body_bytes: int = 48 << 20
    max_memory: int | None = None
    max_connections: int = 1000
    header_timeout: float = 20.0
    body_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    store_path: Path | None = None
    keep_responses: bool = True
    store_max_bytes: int = 256 << 20
    store_max_age: float = 30 * 86400.0
    allow_adapter_loading: bool = False
    parse_special: bool = False
    log_prompts: bool = False
    metrics_prefix: str = "glm4"
    agent: AgentConfig = field(default_factory=AgentConfig)
    ui: bool = False
    training: Path | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InvalidRequestError("there is no model to serve; give one with -m")
        names = [name for model in self.models for name in (*model.names, *model.adapters)]
        for name in names:
            if names.count(name) > 1:
                raise InvalidRequestError(f"two models have the name {name!r}; give them different names")
        if not _METRIC_PREFIX.fullmatch(self.metrics_prefix):
            raise InvalidRequestError(
                f"--metrics-prefix must be a word of letters, digits and _, not {self.metrics_prefix!r}"
            )
        if any(len(key) < 8 for key in self.api_keys):
            raise InvalidRequestError("an API key must have at least 8 characters")
        if not (self.api_keys or self.insecure or self.is_loopback):
            raise InvalidRequestError(
                f"{self.host} can be reached by other machines, and no API key is set. Set one (--api-key-file,"
                " GLM4_API_KEY), listen on 127.0.0.1, or pass --insecure if something in front of this server keeps"
                " others out"
            )

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
