"""Time a token of each method, one prompt at a time, side by side in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.kept import kept
from benchmarks.common.records import rounded
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import Method, trait_cell
from benchmarks.quality.traits import Trait
from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.bench.rounds import Spread, compare, turn
from pad_rt.preference import PreferenceLike
from pad_rt.text.prompt import Prompt

TOKENS = 16  # short turns: what else the machine does then hits all methods alike
ROUNDS = 12
_METHODS: tuple[Method, ...] = ("base", "prompted", "system", "pad", "pad_words", "pad_prompted", "random", "persrm")


def measure_timings(
    bundles: tuple[Path, Path], factors: Mapping[str, float], prompts: Sequence[str], traits: Mapping[str, Trait]
) -> dict[str, dict[str, float]]:
    """Milliseconds a decode step, and their ratio to the base's round by round, by method.

    In every round each method takes its turn, in an order that turns.

    "mixture" has its weights in one reward row, "mixture_rows" is the same preference as a row for each feature.
    """
    generator, words = (Generator.load(bundle) for bundle in bundles)
    speak = CellGenerator(generator, words, factors, words.manifest.persrms[0].prompt_template)
    trait = next(iter(traits.values()))
    half = math.sqrt(1 / len(traits))
    one_row = Preference(weights=dict.fromkeys(traits, half))
    rows = [(Preference(weights={name: 1.0}), half) for name in traits]
    steps: dict[str, list[float]] = {name: [] for name in (*_METHODS, "mixture", "mixture_rows")}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        prompt = prompts[round_ % len(prompts)]
        for name in turn(list(steps), round_):
            request: tuple[Prompt, PreferenceLike]
            options: dict[str, Any] = {"max_new_tokens": TOKENS}
            asked = generator
            if name in ("mixture", "mixture_rows"):
                request = prompt, one_row if name == "mixture" else rows
            else:
                cell = trait_cell(next(method for method in _METHODS if method == name), trait, 1.0)
                request, asked = speak.request(cell, prompt), speak.generator(cell.method)
                options["top_k"] = cell.top_k
            result = asked.generate(request[0], preference=request[1], config=GenerationConfig(**options))
            if round_:
                steps[name].append(result.timing.step_s * 1e3)
    return {name: _figures(values, steps["base"]) for name, values in steps.items()}


def ensure_timings(
    path: Path,
    mark: str,
    bundles: tuple[Path, Path],
    factors: Mapping[str, float],
    prompts: Sequence[str],
    traits: Mapping[str, Trait],
) -> dict[str, dict[str, float]]:
    """`measure_timings`, kept at a path for the bundle with this mark; delete the file to measure again."""
    timings: dict[str, dict[str, float]] = kept(
        path, [mark, TOKENS, ROUNDS], lambda: measure_timings(bundles, factors, prompts, traits)
    )
    return timings


def _figures(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    spread = Spread.of(values)
    quartiles = {"p25": spread.p25, "p50": spread.p50, "p75": spread.p75}
    return {**rounded(quartiles, 2), "ratio": round(compare(values, base).p50, 3)}
