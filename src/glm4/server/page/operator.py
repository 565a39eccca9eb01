"""What the operator of a server sees: models, memory, an hour of load, and what went wrong.

Numbers are those of the Prometheus registry that /metrics shows. The log has messages of WARNING and above, and of
exceptions the type and the place: neither prompts nor keys, unless a message of another server quotes them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from glm4.server.registry import ModelRegistry, ServedModel
from glm4.server.state import ServerState
from glm4.system.memory import Room, resident_memory, total_memory

SAMPLE_SECONDS = 5.0
SAMPLES = 720
"""An hour of them."""
_MAX_RECORDS, _MAX_MESSAGE, _MAX_FRAMES = 200, 1000, 6
_PACKAGE = Path(__file__).parents[2]

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


class LogRing(logging.Handler):
    """The latest records of WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: deque[dict[str, Any]] = deque(maxlen=_MAX_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit
            message = str(record.msg)
        self.records.append(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…",
                "exception": _exception(record.exc_info),
            }
        )


def _exception(
    info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None,
) -> str | None:
    """Its type and where it was raised, the innermost place first. Its text may have what a client sent."""
    if info is None or info[0] is None:
        return None
    frames = traceback.extract_tb(info[2])[-_MAX_FRAMES:]
    places = [f"{_short(frame.filename)}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
    return " ← ".join([info[0].__name__, *places])


def _short(filename: str) -> str:
    """A file of ours as from the package; of another one only the name."""
    path = Path(filename)
    return path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name


class Operator:
    """Watches a server while it runs.

    Args:
        clock: seconds from any start.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._log = LogRing()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._task: asyncio.Task[None] | None = None

    async def start(self, server: ServerState) -> None:
        """Begin."""
        logging.getLogger("glm4").addHandler(self._log)
        self._started = time.monotonic()
        self._task = asyncio.create_task(self._watch(server), name="glm4-operator")

    async def stop(self) -> None:
        """End; nothing of it is left in the process."""
        logging.getLogger("glm4").removeHandler(self._log)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def describe(self, server: ServerState) -> dict[str, Any]:
        """Everything, as JSON."""
        values = read_values(server.metrics.registry, server.config.metrics_prefix)
        columns = zip(*self._samples, strict=True) if self._samples else ([] for _ in Sample._fields)
        room = Room.here()
        return {
            "models": [_model(model, server.models, values) for model in server.models.models],
            "memory": {
                "process": resident_memory(),
                "allocated": room.taken,
                "available": room.free,
                "total": total_memory(),
            },
            "uptime": time.monotonic() - self._started,
            "history": {name: list(column) for name, column in zip(Sample._fields, columns, strict=True)},
            "errors": list(self._log.records),
        }

    async def _watch(self, server: ServerState) -> None:
        before, then = read_values(server.metrics.registry, server.config.metrics_prefix), time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            values, now = read_values(server.metrics.registry, server.config.metrics_prefix), time.monotonic()
            self._samples.append(_sample(before, values, now - then))
            before, then = values, now


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


def _model(model: ServedModel, models: ModelRegistry, values: Values) -> dict[str, Any]:
    def value(name: str) -> float:
        return values.get(name, {}).get(model.name, 0.0)

    failed = model.error is not None or (model.engine is not None and model.engine.failed)
    queries = value("prefix_cache_queries_total")
    return {
        "name": model.name,
        "source": model.spec.source,
        "state": "failed" if failed else "loading" if model.engine is None else "ready",
        "stage": model.stage,
        "progress": model.progress,
        "error": model.error,
        "context": None if model.engine is None else model.llm.info.max_model_len,
        "adapters": list(models.adapters(model)),
        "running": int(value("num_requests_running")),
        "waiting": int(value("num_requests_waiting")),
        "kv_pages_used": int(value("kv_pages_used")),
        "kv_pages_total": int(value("kv_pages_total")),
        "prefix_hit_rate": round(value("prefix_cache_hits_total") / queries, 4) if queries else None,
        "prompt_tokens": int(value("prompt_tokens_total")),
        "generation_tokens": int(value("generation_tokens_total")),
    }
