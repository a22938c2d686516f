"""Means over users: what a method gives for what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.records import markdown
from benchmarks.quality.methods import LABELS

Costs = Mapping[str, Mapping[str, Mapping[str, float]]]  # by place (torch, bundle), method and figure


def summary(rows: Sequence[Mapping[str, Any]], costs: Costs) -> list[dict[str, Any]]:
    """Means over users, by method and strength: wins by each judge, cost, perplexity, repetition by MTLD."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['method']} {row.get('beta', '')}".strip(), []).append(row)
    lines = []
    for name, some in groups.items():
        method = str(some[0]["method"])
        where = "torch" if method in ("base", "soup", "vector") else "bundle"
        lines.append(
            {
                "method": name,
                "label": "base in torch" if method == "base" else LABELS[method],  # type: ignore[index]
                "cost": costs[where][method]["ratio"],
                **{
                    f"{what}_{ordinal}": _mean_of(some, index, what)
                    for what in ("win", "sound", "equal_words")
                    for index, ordinal in enumerate(("first", "second"))
                },
                "perplexity_ratio": _mean([row["perplexity_ratio"][0] for row in some]),
                "repeats": round(float(np.mean([row["repeats"]["mtld"][0] for row in some])), 4),
            }
        )
    return lines


def _mean_of(rows: Sequence[Mapping[str, Any]], judge: int, what: str) -> float | None:
    """Over users, by the first or second judge; None where no judge says it."""
    opinions = [list(row["judges"].values())[judge]["to_base"][what] for row in rows]
    return _mean([opinion[0] for opinion in opinions if opinion is not None])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The summary as markdown."""
    head = ["method", "cost", "win, judge 1", "judge 2", "sound win, judge 1", "judge 2", "perplexity", "repeats, %"]

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.0f}"

    body = [
        [
            f"{line['label']} {line['method'].partition(' ')[2]}".strip(),
            f"{line['cost']:.2f}",
            *(percent(line[f"{what}_{ordinal}"]) for what in ("win", "sound") for ordinal in ("first", "second")),
            "" if line["perplexity_ratio"] is None else f"{line['perplexity_ratio']:.2f}x",
            percent(line["repeats"]),
        ]
        for line in lines
    ]
    return markdown(head, body)
