"""The record as a plot: held-out accuracy after so many answers, by the way of asking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.plots import BLUE, GREY, VERMILION, save

_STYLES = {"asked": ("o", VERMILION), "random": ("s", BLUE), "uncertain": ("^", GREY)}
_TITLES = {
    "three": "three sliders",
    "mixed": "two or three of all features",
    "single": "one feature",
    "outside": "what no feature is about",
}


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write it."""
    return save({"taste": lambda: curves(record)}, folder)


def curves(record: Mapping[str, Any]) -> Figure:
    """A panel a population."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(record["curves"]), sharey=True)
    usual = record["settings"]["as_meant"]
    for axes, (population, rows) in zip(panels, record["curves"].items(), strict=True):
        attainable = 100 * rows[0]["attainable"][0]
        axes.axhline(attainable, color=GREY, lw=0.8, ls=":")
        axes.annotate("attainable", (1, attainable), xytext=(0, 3), textcoords="offset points", color=GREY, fontsize=9)
        for way, (marker, colour) in _STYLES.items():
            own = [row for row in rows if row["way"] == way and row["as_meant"] == usual]
            counts = [row["answers"] for row in own]
            value, low, high = ([100 * row["accuracy"][at] for row in own] for at in range(3))
            axes.plot(counts, value, marker=marker, color=colour, label=way, ms=4)
            axes.fill_between(counts, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(title=_TITLES[population], xscale="log", xlabel="answers")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
    panels[0].set_ylabel("pairs of unseen replies foretold, %")
    panels[0].legend(frameon=False, loc="lower right")
    return figure
