"""Prometheus metrics, under names like vLLM's, in a registry of the app's own."""

from __future__ import annotations

from collections.abc import Callable

from pad_rt.result import FinishReason, Timing, Usage


class Metrics:
    """The app calls `watch` for each model and `exposition` for GET /metrics; the middleware calls the rest."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def watch(self, model: str, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Report a served bundle's queue. `running` and `waiting` are asked at each exposition."""
        raise NotImplementedError

    def ended(self, model: str, usage: Usage, timing: Timing, finish_reason: FinishReason) -> None:
        """One reply (of n, each) ended by itself."""
        raise NotImplementedError

    def failed(self, model: str | None, status: int) -> None:
        """A request was refused, failed, or was left by its client (499)."""
        raise NotImplementedError

    def exposition(self) -> bytes:
        """The metrics as Prometheus reads them."""
        raise NotImplementedError
