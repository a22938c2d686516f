"""The record as plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.common.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, save
from benchmarks.quality.methods import LABELS, MAIN
from benchmarks.quality.table import primary, wanted

_DIRECTIONS = ((1, "o", BLUE), (-1, "s", ORANGE))
FEATURE_COLOURS = {"cheerful": VERMILION, "simple": BLUE, "concise": GREEN}


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every plot that the record has the parts for."""
    parts = record["parts"]
    makers: dict[str, tuple[tuple[str, ...], Callable[[], Figure]]] = {
        "frontier": (("frontier", "timings"), lambda: frontier(parts["frontier"], parts["timings"])),
        "win-rates": (("main",), lambda: win_rates(parts["main"])),
        "beta": (("beta",), lambda: sweep(parts["beta"], "beta", "beta, strength of the reward")),
        "k": (("k",), lambda: sweep(parts["k"], "top_k", "k, candidates that the base proposes")),
        "slider": (("slider",), lambda: slider(parts["slider"])),
        "distance": (("mixtures",), lambda: distance(parts["mixtures"]["rows"])),
    }
    there = {f"quality-{name}": make for name, (needed, make) in makers.items() if all(map(parts.__contains__, needed))}
    return save(there, folder)


def frontier(rows: Sequence[Mapping[str, Any]], timings: Mapping[str, Mapping[str, float]]) -> Figure:
    """Alignment against time a token."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    rates: dict[str, Sequence[float]] = {row["method"]: row["rate"] for row in rows}
    rates |= {"base": [0.5, 0.5, 0.5], "mixture_rows": rates["mixture"]}
    labels: dict[str, str] = {
        **{str(name): label for name, label in LABELS.items()},
        "mixture": "PAD, mixtures in one row",
        "mixture_rows": "PAD, mixtures, a row a trait",
    }
    styles = {
        "base": ("s", GREY),
        "prompted": ("D", GREY),
        "system": ("^", GREY),
        "pad": ("o", VERMILION),
        "pad_words": ("^", VERMILION),
        "pad_prompted": ("v", VERMILION),
        "random": ("X", PURPLE),
        "persrm": ("P", BLUE),
        "mixture": ("o", GREEN),
        "mixture_rows": ("^", GREEN),
    }
    handles = []
    for name, (marker, colour) in styles.items():
        time, rate = timings[name], rates[name]
        x, y = time["p50"], 100 * rate[0]
        errors_x, errors_y = _errors([time["p50"], time["p25"], time["p75"]]), 100 * _errors(rate)
        axes.errorbar(x, y, xerr=errors_x, yerr=errors_y, fmt=marker, color=colour, ms=8, capsize=2, lw=1)
        handles.append(Line2D([], [], color=colour, marker=marker, ms=8, ls="", label=labels[name]))
    axes.axhline(50, color=GREY, lw=0.8, ls=":")
    axes.set(
        xlabel="ms a token, batch 1 (median, quartiles)",
        ylabel="replies that suit the user better\nthan the base's, % (95 % interval)",
    )
    axes.set_ylim(None, 101)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def win_rates(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """By feature and method, both directions."""
    features = list(dict.fromkeys(row["feature"] for row in rows))
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    panels = figure.subplots(1, len(features), sharey=True, squeeze=False)[0]
    for axes, feature in zip(panels, features, strict=True):
        for weight, marker, colour in _DIRECTIONS:
            own = {row["method"]: row for row in rows if (row["feature"], row["weight"]) == (feature, weight)}
            rates = [primary(own[method])["to_base"]["rate"] for method in MAIN]
            errors = 100 * np.concatenate([_errors(rate) for rate in rates], axis=1)
            y = np.arange(len(MAIN)) - 0.15 * weight
            axes.errorbar(
                [100 * rate[0] for rate in rates], y, xerr=errors, fmt=marker, color=colour, capsize=2, lw=1.2
            )
        axes.axvline(50, color=GREY, lw=0.8, ls=":")
        axes.set(xlim=(-4, 104), xticks=(0, 25, 50, 75, 100), yticks=range(len(MAIN)))
        axes.set_yticklabels([LABELS[method] for method in MAIN])
        _name_directions(axes, feature)
    panels[0].invert_yaxis()
    figure.supxlabel("win rate against the base, % (ties half; 95 % interval)", fontsize=11)
    return figure


def sweep(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> Figure:
    """Win rate and perplexity along one setting, a column for each feature."""
    features = list(dict.fromkeys(row["feature"] for row in rows))
    values, linear = sorted({row[key] for row in rows}), key == "beta"  # k doubles from one value to the next
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    panels = figure.subplots(2, len(features), sharex=True, sharey="row", squeeze=False)
    for column, feature in enumerate(features):
        upper, lower = panels[:, column]
        for weight, marker, colour in _DIRECTIONS:
            own = [row for row in rows if (row["feature"], row["weight"]) == (feature, weight)]
            x = np.array([row[key] for row in own], dtype=float) if linear else np.arange(len(own))
            x = x + 0.03 * (-1 if weight > 0 else 1)  # side by side: neither interval hides the other
            rates, texture = [primary(row)["to_base"]["rate"] for row in own], [row["perplexity_ratio"] for row in own]
            for axes, estimates, factor in ((upper, rates, 100), (lower, texture, 1)):
                errors = factor * np.concatenate([_errors(estimate) for estimate in estimates], axis=1)
                y = [factor * estimate[0] for estimate in estimates]
                axes.errorbar(x, y, yerr=errors, fmt=f"{marker}-", color=colour, ms=5, lw=1.3, capsize=2)
        upper.axhline(50, color=GREY, lw=0.8, ls=":")
        lower.axhline(1, color=GREY, lw=0.8, ls=":")
        if linear:
            lower.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "0.5", "1", "1.5", "2"])
        else:
            lower.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        _name_directions(upper, feature)
    panels[0, 0].set(ylabel="win rate against\nthe base, %", ylim=(-4, 104), yticks=(0, 25, 50, 75, 100))
    lower = panels[1, 0]
    lower.set(ylabel="perplexity over\nthe base's own (log)", yscale="log")
    low, high = lower.get_ylim()
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100) if low <= tick <= high]
    lower.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    lower.minorticks_off()
    figure.supxlabel(f"{label} (95 % intervals)", fontsize=11)
    return figure


def slider(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The judge's mean along the weight."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        errors = np.concatenate([_errors(mean) for mean in row["means"]], axis=1)
        means = [mean[0] for mean in row["means"]]
        axes.errorbar(
            row["weights"], means, yerr=errors, fmt="o-", color=FEATURE_COLOURS.get(row["feature"], GREY), capsize=3
        )
        axes.set(title=row["feature"], ylabel=row["judge"], xticks=row["weights"])
    figure.supxlabel("weight w of the feature (0: the base; mean over prompts, 95 % interval)", fontsize=11)
    return figure


def distance(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and regret against the distance to the nearest trained weights."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = (
        ("trained: one trait in full", "o", GREY, [row for row in rows if row["distance"] == 0]),
        ("one trait by half", "s", ORANGE, [row for row in rows if row["kind"] == "slider" and row["distance"]]),
        ("several traits", "^", BLUE, [row for row in rows if row["kind"] == "mixture"]),
    )
    for label, marker, colour, own in groups:
        x = [row["distance"] + 0.012 * (index - len(own) / 2) for index, row in enumerate(own)]
        for axes, key, factor in ((left, "loss", 100), (right, "regret", 1)):
            if own:
                errors = factor * np.concatenate([_errors(row[key]) for row in own], axis=1)
                y = [factor * row[key][0] for row in own]
                axes.errorbar(x, y, yerr=errors, fmt=marker, color=colour, ms=6, capsize=2, lw=1, label=label)
    left.set_ylabel("loss: 1 - win rate by the user's utility, %")
    left.axhline(50, color=GREY, lw=0.8, ls=":")
    right.set_ylabel("regret to the best trained weights, sd")
    for axes in (left, right):
        axes.set_xlabel("distance of w to the nearest trained w")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _name_directions(axes: Axes, feature: str) -> None:
    """A legend over the panel: more of the feature, and less."""
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", label=wanted(feature, weight))
        for weight, marker, colour in _DIRECTIONS
    ]
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        frameon=False,
        handletextpad=0.0,
        columnspacing=0.8,
        borderpad=0,
    )


def _errors(estimate: Sequence[float]) -> np.ndarray:
    """[[below], [above]] of a value with its interval."""
    value, low, high = estimate
    return np.array([[max(0.0, value - low)], [max(0.0, high - value)]])
