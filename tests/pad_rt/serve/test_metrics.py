"""Metrics as Prometheus reads them, counted from records."""

from __future__ import annotations

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from pad_rt.result import Timing, Usage
from pad_rt.serve.logs import RequestRecord
from pad_rt.serve.metrics import Metrics


def timing(queue_s: float, first_token_s: float, step_s: float) -> Timing:
    return Timing(queue_s, first_token_s - queue_s, first_token_s, step_s, 0.0, 9.0, 8)


def record(model: str | None = "m", status: int = 200, total_s: float = 0.0, **given: object) -> RequestRecord:
    return RequestRecord("id", "POST", "/v1/completions", status, total_s, model, **given)  # type: ignore[arg-type]


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels; bare names and buckets are other tests' business."""
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert family.documentation
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_the_metrics_and_their_names() -> None:
    metrics = Metrics()
    metrics.watch("m", running=lambda: 1, waiting=lambda: 2)
    metrics.count(record(replies=[(Usage(1, 2, 0), timing(0.0, 0.1, 0.01), "stop")]))
    metrics.count(record(status=429))
    kinds = {family.name: family.type for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert {name: kind for name, kind in kinds.items() if not name.endswith("_created")} == {
        "pad:num_requests_running": "gauge",
        "pad:num_requests_waiting": "gauge",
        "pad:request_queue_time_seconds": "histogram",
        "pad:time_to_first_token_seconds": "histogram",
        "pad:time_per_output_token_seconds": "histogram",
        "pad:e2e_request_latency_seconds": "histogram",
        "pad:prompt_tokens": "counter",  # exposed with _total
        "pad:generation_tokens": "counter",
        "pad:prefix_cache_queries": "counter",
        "pad:prefix_cache_hits": "counter",
        "pad:request_success": "counter",
        "pad:request_failure": "counter",
    }
    assert metrics.CONTENT_TYPE.startswith("text/plain; version=")


def test_what_a_reply_adds() -> None:
    metrics = Metrics()
    first, second = timing(0.25, 0.5, 0.125), timing(0.0, 0.75, 0.0)
    metrics.count(record(total_s=2.5, replies=[(Usage(10, 4, 6), first, "stop"), (Usage(10, 1, 10), second, "length")]))
    metrics.count(record("other", total_s=1.5, replies=[(Usage(7, 3, 0), first, "stop")]))
    found = samples(metrics)
    assert {key[0]: value for key, value in found.items() if key[1:] == ("m",)} == {
        "pad:request_queue_time_seconds_count": 2,
        "pad:request_queue_time_seconds_sum": 0.25,
        "pad:time_to_first_token_seconds_count": 2,
        "pad:time_to_first_token_seconds_sum": 1.25,
        "pad:time_per_output_token_seconds_count": 1,  # a single token has no next one
        "pad:time_per_output_token_seconds_sum": 0.125,
        "pad:e2e_request_latency_seconds_count": 1,
        "pad:e2e_request_latency_seconds_sum": 2.5,
        "pad:prompt_tokens_total": 20,
        "pad:generation_tokens_total": 5,
        "pad:prefix_cache_queries_total": 20,
        "pad:prefix_cache_hits_total": 16,
    }
    assert found[("pad:request_success_total", "stop", "m")] == found[("pad:request_success_total", "length", "m")] == 1
    assert found[("pad:generation_tokens_total", "other")] == 3
    assert not [key for key in found if key[0] == "pad:request_failure_total"]


def test_what_a_failure_adds() -> None:
    """Also one in the middle of several choices: those that ended count; a latency is of whole replies alone."""
    metrics = Metrics()
    metrics.count(record(None, 404))
    metrics.count(record(None, 404))
    metrics.count(record(status=499, total_s=9.0, replies=[(Usage(1, 2, 0), timing(0.0, 0.1, 0.1), "stop")]))
    found = samples(metrics)
    assert found[("pad:request_failure_total", "", "404")] == 2
    assert found[("pad:request_failure_total", "m", "499")] == 1
    assert found[("pad:request_success_total", "stop", "m")] == 1
    assert not [key for key in found if key[0].startswith("pad:e2e")]


def test_the_queue_is_asked_each_time() -> None:
    metrics, queue = Metrics(), [1, 2]
    metrics.watch("m", running=lambda: queue[0], waiting=lambda: queue[1])
    assert samples(metrics)[("pad:num_requests_waiting", "m")] == 2
    queue[:] = 3, 0
    found = samples(metrics)
    assert (found[("pad:num_requests_running", "m")], found[("pad:num_requests_waiting", "m")]) == (3, 0)


def test_the_names_of_models_are_escaped() -> None:
    metrics, name = Metrics(), 'a"b\\c\nd{e}'
    metrics.count(record(name, 400))
    assert samples(metrics)[("pad:request_failure_total", name, "400")] == 1


def test_every_app_has_metrics_of_its_own() -> None:
    one, other = Metrics(), Metrics()
    one.count(record(status=400))
    assert not samples(other)
    assert not [family for family in REGISTRY.collect() if family.name.startswith("pad:")]
