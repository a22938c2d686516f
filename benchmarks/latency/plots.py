"""The record as plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.common.plots import BLUE, GREY, VERMILION, save
from benchmarks.latency.shapes import SMOLLM2

_LINES = {64: "-", 512: "--"}
_SIDES = {"shared": ("o", BLUE), "pair": ("s", VERMILION)}


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every plot that the record has the parts for."""
    peers = [row for row in record["peers"] if "skipped" not in row and row["model"] == SMOLLM2]
    shapes = [row for row in record["shapes"] if "skipped" not in row]
    figures: dict[str, Callable[[], Figure]] = {}
    if peers:
        figures["latency-peers"] = lambda: peer_times(peers)
    if shapes:
        figures["latency-shapes"] = lambda: shape_ratios(shapes)
    return save(figures, folder)


def peer_times(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Milliseconds a token of every system, guided and alone; what was in several rows shows its median."""
    taken: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for figures in row["sides"].values():
            taken.setdefault(figures["label"], []).append(figures)
    times = {
        label: [statistics.median(one[name]["p50"] for one in runs) for name in ("step_ms", "base_step_ms")]
        for label, runs in taken.items()
    }
    labels = sorted(times, key=lambda label: times[label][0])
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for y, label in enumerate(labels):
        guided, alone = times[label]
        colour = VERMILION if label.startswith("PAD-RT") else BLUE
        axes.plot([alone, guided], [y, y], color=colour, lw=1.2)
        axes.plot(guided, y, "o", color=colour, ms=8)
        axes.plot(alone, y, "o", color=colour, ms=8, mfc="white")
        axes.annotate(f"{guided / alone:.2f}x", (guided, y), (8, 0), textcoords="offset points", va="center", size=9)
    axes.set(xscale="log", xlabel="ms a token, batch 1 (medians; less is better)")
    axes.set_yticks(range(len(labels)), labels)
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    marks = (("guided (PAD)", GREY), ("base alone", "white"))
    handles = [Line2D([], [], color=GREY, marker="o", ms=8, ls="", mfc=fill, label=name) for name, fill in marks]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def shape_ratios(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A guided step over a plain one, along k: a panel for each shape and precision."""
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["shape"], row["precision"]), []).append(row)
    figure = Figure(figsize=(max(6.5, 1.8 * len(panels)), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, ((shape, precision), own) in zip(all_axes, panels.items(), strict=True):
        for side, (marker, colour) in _SIDES.items():
            for prompt, line in _LINES.items():
                points = {row["top_k"]: row["ratio_to_base"][side] for row in own if row["prompt"] == prompt}
                x = sorted(points)
                spreads = [points[top_k] for top_k in x]
                middle = [spread["p50"] for spread in spreads]
                low = [spread["p50"] - spread["p25"] for spread in spreads]
                high = [spread["p75"] - spread["p50"] for spread in spreads]
                axes.errorbar(x, middle, yerr=[low, high], fmt=f"{marker}{line}", color=colour, ms=5, lw=1.2, capsize=2)
        axes.axhline(1, color=GREY, lw=0.8, ls=":")
        axes.set(title=f"{shape}\n{precision}", xticks=sorted({row["top_k"] for row in own}))
    all_axes[0].set_ylabel("PAD step / base step\n(medians, quartiles)")
    figure.supxlabel("k, candidates", fontsize=11)
    handles = [Line2D([], [], color=colour, marker=marker, label=side) for side, (marker, colour) in _SIDES.items()]
    handles += [Line2D([], [], color=GREY, ls=line, label=f"prompt {prompt}") for prompt, line in _LINES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure
