"""The record as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.records import markdown


def tables(record: Mapping[str, Any]) -> str:
    """Curves at the usual noise, the closed loops, and what an answer costs."""
    parts = []
    usual = record["settings"]["as_meant"]
    for population, rows in record["curves"].items():
        lines = [
            [
                row["way"],
                str(row["answers"]),
                _percent(row["accuracy"]),
                _percent(row["share_of_attainable"]),
                _number(row["cosine"]),
                _percent(row["covered"]),
            ]
            for row in rows
            if row["as_meant"] == usual
        ]
        head = ["way", "answers", "held-out pairs foretold", "of what is attainable", "cosine", "intervals that hold"]
        parts.append(f"{population}: attainable {_percent(rows[0]['attainable'])}\n\n{markdown(head, lines)}")
    for population, arms in record["loops"].items():
        lines = [
            [
                name,
                *(_percent(own[what]) if what in own else "" for what in ("win", "win over pairs")),
                _number(own["gain"]),
                _percent(own["share_of_the_sliders_gain"]) if "share_of_the_sliders_gain" in own else "",
            ]
            for name, own in arms.items()
        ]
        head = ["replies with", "win over the base", "win over the pairs in the prompt", "gain, sd", "of the sliders'"]
        parts.append(f"closed loop, {population}\n\n{markdown(head, lines)}")
    return "\n\n".join([*parts, ", ".join(f"{name} {value}" for name, value in record["costs"].items())])


def _percent(estimate: Sequence[float | None]) -> str:
    return _told(estimate, 100, 0)


def _number(estimate: Sequence[float | None]) -> str:
    return _told(estimate, 1, 2)


def _told(estimate: Sequence[float | None], times: float, digits: int) -> str:
    """A figure and its interval."""
    value, low, high = ("?" if number is None else f"{times * number:.{digits}f}" for number in estimate)
    return f"{value} ({low} to {high})"
