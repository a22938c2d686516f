"""Prometheus metrics, under names like vLLM's, in a registry of the app's own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pad_rt.serve.logs import RequestRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)


class Metrics:
    """What a server did so far. Every metric has the label model_name; "" stands for a request that named no model."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = self._gauge("pad:num_requests_running", "Requests that have a place in the batch.")
        self._waiting = self._gauge("pad:num_requests_waiting", "Requests that wait for a place in the batch.")
        self._queue = self._seconds("pad:request_queue_time_seconds", "Time until a request had a place in the batch.")
        self._first = self._seconds("pad:time_to_first_token_seconds", "Time until a request had its first token.")
        self._step = self._seconds(
            "pad:time_per_output_token_seconds", "Median time from a token of a reply to the next."
        )
        self._total = self._seconds("pad:e2e_request_latency_seconds", "Time until a reply was whole.")
        self._prompt = self._counter("pad:prompt_tokens", "Tokens of prompts.")
        self._reply = self._counter("pad:generation_tokens", "Tokens of replies.")
        self._queries = self._counter(
            "pad:prefix_cache_queries", "Tokens of prompts that were looked for in the KV caches."
        )
        self._hits = self._counter("pad:prefix_cache_hits", "Tokens of prompts that were in the KV caches already.")
        self._success = self._counter("pad:request_success", "Replies that ended by themselves.", "finished_reason")
        self._failure = self._counter(
            "pad:request_failure", "Requests that were refused, failed, or were left by their client (499).", "status"
        )

    def watch(self, model: str, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Report the queue of a served bundle. Both are asked at each exposition."""
        self._running.labels(model).set_function(running)
        self._waiting.labels(model).set_function(waiting)

    def count(self, record: RequestRecord) -> None:
        """Count a request that ended; of its choices, each that ended by itself."""
        model = record.model or ""
        for usage, timing, finish_reason in record.replies:
            self._prompt.labels(model).inc(usage.prompt_tokens)
            self._queries.labels(model).inc(usage.prompt_tokens)
            self._hits.labels(model).inc(usage.cached_tokens)
            self._reply.labels(model).inc(usage.completion_tokens)
            self._queue.labels(model).observe(timing.queue_s)
            self._first.labels(model).observe(timing.first_token_s)
            if timing.step_s:
                self._step.labels(model).observe(timing.step_s)
            self._success.labels(model, finish_reason).inc()
        if record.status >= 400:
            self._failure.labels(model, str(record.status)).inc()
        elif record.replies:
            self._total.labels(model).observe(record.total_s)

    def exposition(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["model_name"], registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model_name"], registry=self._registry, buckets=_SECONDS)
