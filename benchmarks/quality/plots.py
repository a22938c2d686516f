"""The record as plots. The first judge's figures have filled markers, the second's hollow ones."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.common.plots import BLUE, GREY, ORANGE, PURPLE, VERMILION, save
from benchmarks.quality.claims import SOUND_TO_BASE
from benchmarks.quality.methods import LABELS
from benchmarks.quality.mixtures import ORDINALS
from benchmarks.quality.traits import wanted

Rows = Sequence[Mapping[str, Any]]
_DIRECTIONS = ((1, "o", BLUE), (-1, "s", ORANGE))
_COLUMNS = 4  # features side by side
_FACES = (None, "white")  # of markers, by judge
STYLES = {  # marker and colour of each method
    "base": ("s", GREY),
    "prompted": ("D", GREY),
    "system": ("^", GREY),
    "pad": ("o", VERMILION),
    "pad_prompted": ("v", VERMILION),
    "random": ("X", PURPLE),
    "persrm": ("P", BLUE),
    "soup": ("^", BLUE),
    "vector": ("v", ORANGE),
    "best_of_4": ("<", PURPLE),
    "best_of_8": (">", PURPLE),
}


def draw(record: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Every plot that the record has the parts for."""
    parts = record["parts"]
    methods = [*parts.get("main", ()), *parts.get("others", ())]
    makers: dict[str, tuple[str, Callable[[], Figure]]] = {
        "cost": ("main", lambda: cost(methods, parts["timings"])),
        "win-rates": ("main", lambda: win_rates(methods)),
        "beta": ("beta", lambda: sweep(parts["beta"], "beta", "beta, strength of the reward")),
        "k": ("k", lambda: sweep(parts["k"], "top_k", "k, candidates that the base proposes")),
        "mixtures": ("mixtures", lambda: mixtures(parts["mixtures"])),
        "slider": ("slider", lambda: slider(parts["slider"])),
        "front": ("front", lambda: front(parts["front"])),
    }
    return save({f"{name}-{kind}": make for kind, (part, make) in makers.items() if parts.get(part)}, folder)


def cost(rows: Rows, timings: Mapping[str, Mapping[str, float]]) -> Figure:
    """Sound wins, mean over users and judges, against time a token."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for method, (marker, colour) in STYLES.items():
        own = [row for row in rows if row["method"] == method]
        if not own or method not in timings:
            continue
        time = timings[method]
        rate = np.mean([judge["to_base"]["sound"][0] for row in own for judge in row["judges"].values()])
        errors = _errors([time["p50"], time["p25"], time["p75"]])
        label = LABELS[own[0]["method"]]
        axes.errorbar(time["p50"], 100 * rate, xerr=errors, fmt=marker, color=colour, ms=8, capsize=2, label=label)
    axes.axvline(timings["base"]["p50"], color=GREY, lw=0.8, ls=":")
    axes.set(
        xlabel="ms a token, batch 1 (median, quartiles; dotted: the base)",
        ylabel="sound wins over the base, %\n(mean over users and both judges)",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def win_rates(rows: Rows) -> Figure:
    """Sound wins over the base by feature and method, both directions and both judges."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    features = _features(rows)
    figure, panels = _panels(len(features), height=0.3 * len(methods) + 1.3, sharey=True)
    for axes, feature in zip(panels, features, strict=False):
        for weight, marker, colour in _DIRECTIONS:
            own = {row["method"]: row for row in rows if (row["feature"], row["weight"]) == (feature, weight)}
            for judge, face in enumerate(_FACES):
                rates = [_opinion(own[method], judge)["sound"] for method in methods]
                y = np.arange(len(methods)) - 0.22 * weight + 0.14 * judge
                _intervals(axes, rates, y, marker, colour, face, sideways=True)
        axes.axvline(100 * SOUND_TO_BASE, color=GREY, lw=0.8, ls=":")
        axes.set(xlim=(-4, 104), xticks=(0, 50, 100), yticks=range(len(methods)))
        axes.set_yticklabels([LABELS[method] for method in methods])
        _name_directions(axes, feature)
    panels[0].invert_yaxis()
    figure.supxlabel("sound wins over the base, % (filled: first judge, hollow: second; 95 % intervals)", fontsize=11)
    return figure


def sweep(rows: Rows, key: str, label: str) -> Figure:
    """Sound wins by the first judge and perplexity along one setting."""
    features = _features(rows)
    values = sorted({row[key] for row in rows if row["method"] != "base"})
    count = -(-len(features) // _COLUMNS)
    figure = Figure(figsize=(8, 3.6 * count + 0.4), layout="constrained")
    panels = figure.subplots(2 * count, min(_COLUMNS, len(features)), sharex=True, sharey="row", squeeze=False)
    for index, feature in enumerate(features):
        upper, lower = panels[2 * (index // _COLUMNS) : 2 * (index // _COLUMNS) + 2, index % _COLUMNS]
        for weight, marker, colour in _DIRECTIONS:
            own = [row for row in rows if (row["feature"], row["weight"]) == (feature, weight)]
            guided = [row for row in own if row["method"] != "base"]
            at = [values.index(row[key]) - 0.06 * weight for row in guided]
            _intervals(upper, [_opinion(row, 0)["sound"] for row in guided], at, f"{marker}-", colour)
            _intervals(lower, [row["perplexity_ratio"] for row in guided], at, f"{marker}-", colour, factor=1)
        upper.axhline(100 * SOUND_TO_BASE, color=GREY, lw=0.8, ls=":")
        upper.set(ylim=(-4, 104), yticks=(0, 50, 100), ylabel="sound wins, %" if index % _COLUMNS == 0 else "")
        lower.axhline(1, color=GREY, lw=0.8, ls=":")
        lower.set(yscale="log", ylabel="perplexity / base" if index % _COLUMNS == 0 else "")
        lower.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        lower.minorticks_off()
        lower.set_xticks(range(len(values)), [f"{value:g}" for value in values], fontsize=9)
        _name_directions(upper, feature)
    for index in range(len(features), count * panels.shape[1]):
        _hide(panels[2 * (index // _COLUMNS) : 2 * (index // _COLUMNS) + 2, index % _COLUMNS])
    figure.supxlabel(f"{label} (first judge; 95 % intervals)", fontsize=11)
    return figure


def mixtures(rows: Rows) -> Figure:
    """Joint wins, sound or not, and the rate of each wanted trait."""
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for judge, (ordinal, face) in enumerate(zip(ORDINALS, _FACES, strict=True)):
        y = np.arange(len(rows)) + 0.2 * judge - 0.1
        _intervals(axes, [row[ordinal]["joint"] for row in rows], y, "o", VERMILION, face, sideways=True)
        for index, row in enumerate(rows):
            each = [100 * rate[0] for rate in row[ordinal]["each"].values()]
            axes.plot(each, [y[index]] * len(each), "|", color=BLUE, ms=9, mew=1.6)
    axes.axvline(25, color=GREY, lw=0.8, ls=":")
    axes.set(xlim=(-2, 102), yticks=range(len(rows)), xlabel="wins over the base at equal words, % (95 % intervals)")
    axes.set_yticklabels([" and ".join(row["wanted"]) for row in rows])
    axes.invert_yaxis()
    handles = [
        Line2D([], [], color=VERMILION, marker="o", ls="", label="both traits, first judges"),
        Line2D([], [], color=VERMILION, marker="o", mfc="white", ls="", label="second judges"),
        Line2D([], [], color=BLUE, marker="|", ms=9, mew=1.6, ls="", label="each trait"),
        Line2D([], [], color=GREY, lw=0.8, ls=":", label="both by chance"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def slider(rows: Rows) -> Figure:
    """The first judge's mean along the weight."""
    features = _features(rows)
    figure, panels = _panels(len(features), height=2.3)
    for axes, feature in zip(panels, features, strict=False):
        row = next(row for row in rows if row["feature"] == feature)
        _intervals(axes, row["means"], row["weights"], "o-", BLUE, factor=1)
        axes.set_title(f"{feature}\n", pad=12)
        axes.set_xticks([-1, 0, 1])
        judge = textwrap.fill(row["judge"], 34)
        axes.text(0.5, 1.02, judge, transform=axes.transAxes, ha="center", va="bottom", fontsize=6.5)
    figure.supxlabel("weight w of the feature (0: the base; first judge's mean, 95 % interval)", fontsize=11)
    return figure


def front(rows: Rows) -> Figure:
    """The grid of two sliders, by the first judges and by the second."""
    figure = Figure(figsize=(8, 3.7 * len(rows) + 0.5), layout="constrained")
    for panels, row in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        for axes, ordinal in zip(panels, ORDINALS, strict=True):
            own = row[ordinal]
            grid = {tuple(point["weights"]): point["means"] for point in own["pad"]["points"]}
            steps = sorted({weights[0] for weights in grid})
            for step in steps:
                for line in ([(step, other) for other in steps], [(other, step) for other in steps]):
                    axes.plot(*zip(*(grid[weights] for weights in line), strict=True), color=VERMILION, lw=0.6)
            for group, (marker, colour) in {
                "pad": ("o", VERMILION),
                "prompted": ("D", GREY),
                "random": ("X", PURPLE),
            }.items():
                x, y = zip(*(point["means"] for point in own[group]["points"]), strict=True)
                axes.plot(x, y, marker, color=colour, ms=4)
            axes.plot(0, 0, "s", color="black", ms=6)
            axes.set(xlabel=f"{row['features'][0]}, sd", ylabel=f"{row['features'][1]}, sd")
            axes.set_title(" and ".join(own["judges"]), fontsize=8)
    handles = [
        Line2D([], [], color=VERMILION, marker="o", ms=4, lw=0.6, label="PAD, 5 x 5 weights"),
        Line2D([], [], color=GREY, marker="D", ms=4, ls="", label="base, prompted"),
        Line2D([], [], color=PURPLE, marker="X", ms=4, ls="", label="random reward"),
        Line2D([], [], color="black", marker="s", ms=6, ls="", label="base"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _features(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["feature"] for row in rows))


def _panels(number: int, *, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each feature, a few side by side."""
    count = -(-number // _COLUMNS)
    figure = Figure(figsize=(8, height * count + 0.4), layout="constrained")
    panels = list(figure.subplots(count, min(_COLUMNS, number), sharey=sharey, squeeze=False).flat)
    _hide(panels[number:])
    return figure, panels


def _hide(panels: Iterable[Axes]) -> None:
    for axes in panels:
        axes.set_axis_off()


def _opinion(row: Mapping[str, Any], judge: int) -> Mapping[str, Any]:
    """How a row does against the base, by the first judge or the second."""
    opinion: Mapping[str, Any] = list(row["judges"].values())[judge]["to_base"]
    return opinion


def _intervals(
    axes: Axes,
    estimates: Sequence[Sequence[float]],
    at: Sequence[float] | np.ndarray,
    style: str,
    colour: str,
    face: str | None = None,
    *,
    factor: float = 100,
    sideways: bool = False,
) -> None:
    """Values with their intervals, in percent unless told otherwise."""
    values = [factor * estimate[0] for estimate in estimates]
    errors = factor * np.concatenate([_errors(estimate) for estimate in estimates], axis=1)
    x, y = (values, at) if sideways else (at, values)
    across, along = (errors, None) if sideways else (None, errors)
    axes.errorbar(x, y, xerr=across, yerr=along, fmt=style, color=colour, mfc=face or colour, ms=4.5, lw=1.1, capsize=2)


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
        columnspacing=0.6,
        borderpad=0,
        fontsize=9,
    )


def _errors(estimate: Sequence[float]) -> np.ndarray:
    """[[below], [above]] of a value with its interval."""
    value, low, high = estimate
    return np.array([[max(0.0, value - low)], [max(0.0, high - value)]])
