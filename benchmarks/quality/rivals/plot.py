"""The front: sound wins against cost, with the perplexity of each method beside its marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality.plots import STYLES


def front(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Of the summary's lines, one a method."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        marker, colour = STYLES[line["method"]]
        sound = 50 * (line["sound_first"] + line["sound_second"])  # mean of two shares, in %
        axes.plot(line["cost"], sound, marker=marker, color=colour, ms=9, ls="", label=line["label"])
        if line["perplexity_ratio"] is not None:
            beside = f"{line['perplexity_ratio']:.2f}x"
            axes.annotate(beside, (line["cost"], sound), (7, 5), textcoords="offset points", color=colour)
    axes.set_xscale("log")
    ticks = [1, 1.5, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(
        xlabel="cost: time over the base's own in the same place\n(beside the markers: perplexity over the base's)",
        ylabel="sound wins over the base, %\n(mean over users and both judges)",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure
