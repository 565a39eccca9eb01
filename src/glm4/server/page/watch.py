"""`Watch`: the load of a server over the last hour, sampled from the registry that /metrics shows, and its log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from glm4.server.page.log_ring import LogRing
from glm4.server.state import ServerState

SAMPLE_SECONDS = 5.0
SAMPLES = 720
"""An hour of them."""

Values = Mapping[str, Mapping[str, float]]
"""Name of a sample, without the prefix → model → value."""


class Sample(NamedTuple):
    """The load of all models together.

    Attributes:
        seconds: since the epoch.
        prompt_tps, generation_tps: tokens per second since the sample before.
        kv: fraction of KV pages in use, of the model that has the least left.
    """

    seconds: float
    prompt_tps: float
    generation_tps: float
    running: int
    waiting: int
    kv: float


class Watch:
    """Watches a server while it runs.

    Attributes:
        log: of the loggers of glm4, as far as their level lets records through.
    """

    def __init__(self) -> None:
        self.log = LogRing()
        self._begun = time.monotonic()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._task: asyncio.Task[None] | None = None

    @property
    def uptime(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def start(self, server: ServerState) -> None:
        """Begin, in a running event loop."""
        logging.getLogger("glm4").addHandler(self.log)
        self._begun = time.monotonic()
        self._task = asyncio.create_task(self._run(server), name="glm4-watch")

    async def stop(self) -> None:
        """End; nothing of it is left in the process."""
        logging.getLogger("glm4").removeHandler(self.log)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def history(self) -> dict[str, list[Any]]:
        """A list for each field of `Sample`, the oldest first."""
        return {name: [sample[index] for sample in self._samples] for index, name in enumerate(Sample._fields)}

    async def _run(self, server: ServerState) -> None:
        before, then = current(server), time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            values, now = current(server), time.monotonic()
            self._samples.append(_sample(before, values, now - then))
            before, then = values, now


def current(server: ServerState) -> Values:
    """Counters and gauges of each model, as they are now."""
    return read_values(server.metrics.registry, server.config.metrics_prefix)


def read_values(registry: CollectorRegistry, prefix: str) -> Values:
    """Counters and gauges of each model."""
    found: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        if family.type in ("counter", "gauge"):
            for sample in family.samples:
                if set(sample.labels) == {"model_name"}:
                    model = sample.labels["model_name"]
                    found.setdefault(sample.name.removeprefix(f"{prefix}:"), {})[model] = sample.value
    return found


def _sample(before: Values, values: Values, seconds: float) -> Sample:
    def rate(name: str) -> float:
        return round((_sum(values, name) - _sum(before, name)) / seconds, 2)

    return Sample(
        round(time.time(), 1),
        rate("prompt_tokens_total"),
        rate("generation_tokens_total"),
        int(_sum(values, "num_requests_running")),
        int(_sum(values, "num_requests_waiting")),
        round(max(values.get("kv_cache_usage_perc", {}).values(), default=0.0), 4),
    )


def _sum(values: Values, name: str) -> float:
    return sum(values.get(name, {}).values())
