"""Time a token of each method, one prompt at a time, side by side in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.common.records import rounded
from benchmarks.quality.design import MAIN, OTHERS, Design
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import Cell, Method
from pad_rt.bench.rounds import Spread, compare, turn

TOKENS = 16  # short turns: what else the machine does then hits all methods alike
ROUNDS = 12


def measure_timings(generator: CellGenerator, questions: Sequence[str], design: Design) -> dict[str, dict[str, float]]:
    """Milliseconds a decode step, and their ratio to the base's round by round, by method.

    In every round each method takes its turn, in an order that turns.
    """
    trait, weight = design.users[0]
    methods: list[Method] = [method for method in ("base", *MAIN, *OTHERS) if design.chat or method != "system"]
    cells: dict[str, Cell] = {
        method: replace(design.cell(method, {trait.name: weight}), max_new_tokens=TOKENS) for method in methods
    }
    steps: dict[str, list[float]] = {method: [] for method in cells}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        question = questions[round_ % len(questions)]
        for method in turn(list(cells), round_):
            prompt, preference = generator.request(cells[method], question)
            config = generator.config(cells[method], question)
            result = generator.generator(cells[method]).generate(prompt, preference=preference, config=config)
            if round_:
                steps[method].append(result.timing.step_s * 1e3)
    return {name: _figures(values, steps["base"]) for name, values in steps.items()}


def _figures(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    spread = Spread.of(values)
    quartiles = {"p25": spread.p25, "p50": spread.p50, "p75": spread.p75}
    return {**rounded(quartiles, 2), "ratio": round(compare(values, base).p50, 3)}
