"""Prometheus metrics under vLLM's names, so that dashboards made for it work (`--metrics-prefix vllm` for its prefix).

Label values never come from a client: only served model names and finish reasons.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from glm4.server.registry import ModelRegistry

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000)
_SAMPLES = (1, 2, 5, 10, 20)


class ServerMetrics:
    """Counters and histograms of one server, and gauges read from its engines on demand."""

    def __init__(self, prefix: str, models: ModelRegistry) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(prefix, models))
        label = ("model_name",)

        def counter(name: str, text: str, labels: tuple[str, ...] = label) -> Counter:
            return Counter(f"{prefix}:{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"{prefix}:{name}", text, label, buckets=buckets, registry=self.registry)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.request_success = counter(
            "request_success", "Finished answers, by reason.", ("model_name", "finished_reason")
        )
        self.time_to_first_token = histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self.inter_token_latency = histogram("inter_token_latency_seconds", "Between two chunks of a stream.")
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "Mean time per token of a request after the first."
        )
        self.e2e_latency = histogram("e2e_request_latency_seconds", "From arrival to the end of the answer.")
        self.queue_time = histogram("request_queue_time_seconds", "Waiting for a slot in the engine.")
        self.prefill_time = histogram("request_prefill_time_seconds", "From the engine to the first token.")
        self.decode_time = histogram("request_decode_time_seconds", "From the first token to the last.")
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Prompt length.", _TOKENS)
        self.request_generation_tokens = histogram("request_generation_tokens", "Answer length.", _TOKENS)
        self.request_params_n = histogram("request_params_n", "Samples requested.", _SAMPLES)
        self.request_params_max_tokens = histogram("request_params_max_tokens", "max_tokens requested.", _TOKENS)

    def begin(self, model: str, prompt_tokens: int, n: int, max_tokens: int | None) -> RequestTimer:
        """Start the clock of a request."""
        self.request_params_n.labels(model).observe(n)
        if max_tokens is not None:
            self.request_params_max_tokens.labels(model).observe(max_tokens)
        return RequestTimer(self, model, prompt_tokens)


class RequestTimer:
    """Times of one request, recorded as they happen."""

    def __init__(self, metrics: ServerMetrics, model: str, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._arrival = self._admitted = time.monotonic()
        self._first: float | None = None
        self._latest = 0.0
        self._tokens = 0

    def admitted(self) -> None:
        """The engine has accepted it."""
        self._admitted = time.monotonic()
        self._metrics.queue_time.labels(self._model).observe(self._admitted - self._arrival)
        self._metrics.prompt_tokens.labels(self._model).inc(self._prompt_tokens)
        self._metrics.request_prompt_tokens.labels(self._model).observe(self._prompt_tokens)

    def tokens(self, count: int) -> None:
        """`count` tokens arrived."""
        if not count:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._metrics.time_to_first_token.labels(self._model).observe(now - self._arrival)
            self._metrics.prefill_time.labels(self._model).observe(now - self._admitted)
        else:
            self._metrics.inter_token_latency.labels(self._model).observe(now - self._latest)
        self._latest = now
        self._tokens += count
        self._metrics.generation_tokens.labels(self._model).inc(count)

    def finished(self, reasons: Iterable[str]) -> None:
        """It has finished: one reason per sample."""
        now = time.monotonic()
        for reason in reasons:
            self._metrics.request_success.labels(self._model, reason).inc()
        self._metrics.e2e_latency.labels(self._model).observe(now - self._arrival)
        self._metrics.request_generation_tokens.labels(self._model).observe(self._tokens)
        if self._first is not None:
            self._metrics.decode_time.labels(self._model).observe(self._latest - self._first)
            if self._tokens > 1:
                mean = (self._latest - self._first) / (self._tokens - 1)
                self._metrics.time_per_output_token.labels(self._model).observe(mean)


class _EngineCollector(Collector):
    """Statistics of the engines, read when metrics are collected."""

    def __init__(self, prefix: str, models: ModelRegistry) -> None:
        self._prefix = prefix
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """One family per number, one sample per model."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}

        def put(kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, value: float) -> None:
            family = families.get(name)
            if family is None:
                family = families[name] = kind(f"{self._prefix}:{name}", text, labels=["model_name"])
            family.add_metric([model.name], value)

        for model in self._models.models:
            if model.engine is None or model.admission is None:
                continue
            stats = model.llm.stats()
            waiting = stats.num_waiting + model.admission.num_waiting
            usage = stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0
            gauge, counter = GaugeMetricFamily, CounterMetricFamily
            put(gauge, "num_requests_running", "Requests in the batch.", stats.num_running)
            put(gauge, "num_requests_waiting", "Requests waiting for a slot.", waiting)
            put(gauge, "kv_cache_usage_perc", "Fraction of KV pages in use.", usage)
            put(gauge, "kv_pages_used", "KV pages in use.", stats.kv_pages_used)
            put(gauge, "kv_pages_total", "KV pages that there are.", stats.kv_pages_total)
            put(gauge, "prompt_score_bytes", "Memory of log-probabilities of prompts.", stats.prompt_score_nbytes)
            put(counter, "prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries)
            put(counter, "prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits)
            put(counter, "num_preemptions", "Requests preempted for lack of pages.", stats.num_preemptions)
            put(counter, "spec_decode_num_draft_tokens", "Draft tokens proposed.", stats.num_drafted_tokens)
            put(counter, "spec_decode_num_accepted_tokens", "Draft tokens accepted.", stats.num_accepted_tokens)
            put(counter, "pictures_encoded", "Pictures that went through the vision tower.", stats.pictures_encoded)
            put(counter, "picture_cache_hits", "Pictures that did not have to.", stats.picture_cache_hits)
            put(counter, "kv_store_hits", "Prompt tokens read from the KV store.", stats.kv_store_hits)
            put(counter, "kv_store_pages_written", "Pages written there.", stats.kv_store_pages_written)
            put(gauge, "kv_store_bytes", "Bytes of the pages that are there.", stats.kv_store_nbytes)
        yield from families.values()
