"""What a judge says as one slider moves, and how far two sliders together reach beyond the base."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import estimates
from benchmarks.quality.design import SLIDER, Design, ends, grid
from benchmarks.quality.estimates import Array, bootstrap, hypervolume, rate
from benchmarks.quality.judges import Judge
from benchmarks.quality.methods import Cell
from benchmarks.quality.mixtures import ORDINALS
from benchmarks.quality.scores import Scores

_DIRECTIONS = np.array(list(itertools.product((1.0, -1.0), repeat=2)))  # of two sliders


def slider_rows(scores: Scores, design: Design, number: int) -> list[dict[str, Any]]:
    """Each judge's mean as the weight goes from -1 to 1, and whether it ever falls (at the cap it is flat)."""
    rows = []
    for name in design.traits:
        cells = [design.pad({name: weight}) for weight in SLIDER]
        for judge in scores.judges(name):
            columns = [scores.score(cell, judge, number) for cell in cells]
            means = [float(estimates.mean(column)) for column in columns]
            rows.append(
                {
                    "feature": name,
                    "judge": judge.name,
                    "weights": list(SLIDER),
                    "means": [rate(column) for column in columns],
                    "monotonic": all(low <= high for low, high in itertools.pairwise(means)),
                    "rise": bootstrap(estimates.mean_difference, columns[0], columns[-1]).rounded(),
                }
            )
    return rows


def front_row(scores: Scores, design: Design, names: tuple[str, str], number: int) -> dict[str, Any]:
    """Two sliders in a grid, the base told of one end or two, and a random reward for the same.

    Points are means over questions in standard deviations of the base's replies, the base at 0. The hypervolume is the
    area that points dominate above the point one standard deviation below the base in both, mean over the four
    directions that the two sliders can be wanted in; the base alone has 1.
    """
    base = design.cell("base", dict.fromkeys(names, 0.0))
    at_ends = ends(names)
    groups: dict[str, dict[tuple[float, float], Cell]] = {
        "pad": _by_point(names, grid(names, SLIDER), [design.pad(weights) for weights in grid(names, SLIDER)]),
        "pad_ends": _by_point(names, at_ends, [design.pad(weights) for weights in at_ends]),
        "prompted": _by_point(names, at_ends, [design.cell("prompted", weights) for weights in at_ends]),
        "random": _by_point(names, at_ends, [design.cell("random", weights) for weights in at_ends]),
    }
    record: dict[str, Any] = {"features": list(names), "questions": number}
    for index, ordinal in enumerate(ORDINALS):
        judges = [scores.judges(name)[index] for name in names]
        record[ordinal] = {"judges": [judge.name for judge in judges]}
        for group, cells in groups.items():
            values = _standard(scores, [*cells.values()], base, judges, number)  # [questions, points, 2]
            means = np.nanmean(values, axis=0)
            record[ordinal][group] = {
                "points": [
                    {"weights": list(weights), "means": [round(float(value), 4) for value in point]}
                    for weights, point in zip(cells, means, strict=True)
                ],
                "hypervolume": bootstrap(_reach, values).rounded(),
            }
    return record


def _by_point(
    names: tuple[str, str], points: Sequence[Mapping[str, float]], cells: Sequence[Cell]
) -> dict[tuple[float, float], Cell]:
    return {(point[names[0]], point[names[1]]): cell for point, cell in zip(points, cells, strict=True)}


def _standard(scores: Scores, cells: Sequence[Cell], base: Cell, judges: Sequence[Judge], number: int) -> Array:
    """Scores in standard deviations of the base's replies from their mean [questions, cells, judges]."""
    columns = []
    for judge in judges:
        plain = scores.score(base, judge, number)
        own = np.stack([scores.score(cell, judge, number) for cell in cells], axis=-1)
        columns.append((own - np.nanmean(plain)) / (np.nanstd(plain) or 1.0))
    return np.stack(columns, axis=-1)


def _reach(values: Array) -> Array:
    """Hypervolume of [..., questions, points, 2], mean over directions; the base, at 0, is among the points."""
    means = estimates.mean(np.moveaxis(values, -3, -1))  # [..., points, 2]
    means = np.concatenate([means, np.zeros_like(means[..., :1, :])], axis=-2)
    volumes: Array = np.mean([hypervolume(direction * means + 1.0) for direction in _DIRECTIONS], axis=0)
    return volumes
