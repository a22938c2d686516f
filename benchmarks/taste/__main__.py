"""How many answers does it take to know a person? Simulated people choose between replies and are replied to.

People want what instruments measure that no training saw (the judges of benchmarks.quality), single traits, mixtures,
and traits that no feature is about. They answer as they mean in 70, 84 or 95 % of random questions. Then: how many
pairs of unseen replies their learned weights foretell, and, in closed loop, how often they like the replies better than
the base's. Everything that takes long is kept under --work; the same command goes on. Writes
benchmarks/results/taste.json and docs/plots/taste.png, and prints tables.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import PLOTS, RESULTS, ROOT, rounded, versions, write_dense
from benchmarks.quality.estimates import Array, bootstrap, mean
from benchmarks.taste import closed_loop
from benchmarks.taste.bench import ANSWERS, USUAL_NOISE, Bench, arms_of, curves_of, open_bench, replies_of
from benchmarks.taste.closed_loop import ARMS, LEARNED, POPULATION, SLIDERS, Arm
from benchmarks.taste.costs import measure_costs
from benchmarks.taste.table import tables
from pad_rt import Generator

POPULATIONS = ("three", "mixed", "single", "outside")
NOISES = (0.7, USUAL_NOISE, 0.95)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="of the shipped PersRM, for prompts of 2,048 tokens")
    parser.add_argument("--people", type=int, default=40, help="of each population")
    parser.add_argument("--prompts", type=int, default=24, help="questions that people are asked about")
    parser.add_argument("--unseen", type=int, default=24, help="questions that are kept for measuring")
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=[*POPULATIONS], help="of the curves")
    parser.add_argument("--noises", nargs="+", type=float, default=[*NOISES], help="shares of answers as meant")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="of the closed loop")
    parser.add_argument("--loop", nargs="*", choices=("three", "mixed"), default=["three", "mixed"])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, a thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "taste")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    told = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in vars(arguments).items())
    bench = open_bench(told)  # writes the pools
    number = range(arguments.people)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the workers: two threads of small products wait for each other
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        curves = {
            population: list(pool.map(functools.partial(curves_of, told, population), number))
            for population in arguments.populations
        }
        loops = {}
        for population in arguments.loop:
            arms = list(pool.map(functools.partial(arms_of, told, population), number))
            common = np.mean([list(own[LEARNED][0].weights.values()) for own in arms], axis=0)
            weights = dict(zip(bench.features, common.tolist(), strict=True))
            base, usual = pool.map(
                functools.partial(replies_of, told), [Arm("base"), Arm(f"{population}-population", weights)]
            )
            loops[population] = _loop(bench, population, arms, base, usual)
    with Generator.load(arguments.bundle) as generator:  # with all cores, as a person's own device
        costs = measure_costs(generator)
    record = {
        "what": "simulated people, judged by instruments that no training saw; figures with 95 % intervals over people",
        "settings": {
            "people": arguments.people,
            "prompts": arguments.prompts,
            "unseen": arguments.unseen,
            "answers_before_the_loop": ANSWERS,
            "as_meant": USUAL_NOISE,
            "persrms": bench.mark,
        },
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy", "scikit-learn"),
        "curves": {population: _summary(rows) for population, rows in curves.items()},
        "loops": loops,
        "costs": rounded(costs, 4),
    }
    write_dense(arguments.results / "taste.json", record)
    from benchmarks.taste.plots import draw

    draw(record, arguments.plots)
    print(tables(record))


def _summary(people: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all people as one: means, with intervals over people."""
    rows = []
    for same in zip(*people, strict=True):
        row: dict[str, Any] = {name: same[0][name] for name in ("way", "answers", "as_meant")}
        for name in ("accuracy", "attainable", "sliders", "cosine", "length", "covered", "width", "right", "expected"):
            values = [one[name] for one in same]
            row[name] = None if None in values else _mean(np.array(values))
        of_attainable = [np.array([one[name] for one in same]) for name in ("accuracy", "attainable")]
        row["share_of_attainable"] = bootstrap(_ratio, *of_attainable).rounded()
        rows.append(row)
    return rows


def _loop(
    bench: Bench, population: str, arms: Sequence[dict[str, Any]], base: Any, usual: Any
) -> dict[str, dict[str, Any]]:
    """The closed loop of one population."""
    people = bench.people(population)
    replies = {name: [own[name][1] for own in arms] for name in bench.arguments.arms}
    replies[POPULATION] = [usual] * len(people)
    replies["another person's"] = [replies[LEARNED][at - 1] for at in range(len(people))]
    found = closed_loop.held_against(people, replies, base, bench.instruments)
    told: dict[str, dict[str, Any]] = {
        name: {what: _mean(values) for what, values in own.items()} for name, own in found.items()
    }
    if SLIDERS in found:
        for name in (name for name in found if name != SLIDERS):
            share = bootstrap(_ratio, found[name]["gain"], found[SLIDERS]["gain"])
            told[name]["share_of_the_sliders_gain"] = share.rounded()
    return told


def _mean(values: Array) -> list[float | None]:
    return bootstrap(mean, values).rounded()


def _ratio(own: Array, other: Array) -> Array:
    """Of means, over the last axis."""
    ratio: Array = own.mean(axis=-1) / other.mean(axis=-1)
    return ratio


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the same command again to go on") from None
