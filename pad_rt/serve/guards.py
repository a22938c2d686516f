"""ASGI middleware: what stands between the network and the app."""

from __future__ import annotations

from starlette.middleware import Middleware

from pad_rt.serve.logs import RequestLog
from pad_rt.serve.metrics import Metrics
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.settings import ServeSettings


def middleware(settings: ServeSettings, readiness: Readiness, metrics: Metrics, log: RequestLog) -> list[Middleware]:
    """From the outermost in: record (request id, log line, metrics), Host and Origin, CORS, errors that escape (500),
    key, body (413, 408; the app's first `receive` has all of it), readiness (503 while loading and draining, also for
    /health).
    """
    raise NotImplementedError
