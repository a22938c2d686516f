"""One process's share of the benchmark: the pools, the instruments and the bundle, opened once."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.common.kept import kept
from benchmarks.quality.prompts import read_prompts, read_unpaired
from benchmarks.taste.closed_loop import FULL, LEARNED, PAIRS, SLIDERS, Arm
from benchmarks.taste.judged_pool import Instruments, JudgedPool, make_pool
from benchmarks.taste.learning import WAYS, Way, learn, measure
from benchmarks.taste.person import Person, draw_people
from pad_rt import Generator
from pad_rt.taste.features import persrms_digest

USUAL_NOISE = 0.84  # answers as meant
ANSWERS = 8  # before the closed loop
Told = tuple[tuple[str, Any], ...]  # the command's arguments, in pairs


class Bench:
    """The pools, the instruments and the bundle, in one process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.generator = Generator.load(arguments.bundle, num_threads=1)
        self.mark = persrms_digest(self.generator.manifest)
        self.instruments = Instruments()
        self.asking = self._pool("asking", read_unpaired(arguments.prompts))
        self.unseen = self._pool("unseen", read_prompts(arguments.unseen))
        self.features = self.asking.pool.features

    def people(self, population: str) -> list[Person]:
        return draw_people(population, self.arguments.people, self.features)

    def curves(self, population: str, number: int) -> list[dict[str, Any]]:
        """Rows of one person: all ways of asking at the usual noise, two of them at the others."""
        person = self.people(population)[number]
        rows = []
        for noise in self.arguments.noises:
            ways: Sequence[Way] = WAYS if noise == USUAL_NOISE else ("asked", "random")
            path = self.arguments.work / "curves" / f"{population}-{number}-{noise:g}.json"
            mark = [self.mark, self.arguments.prompts, self.arguments.unseen]
            rows += kept(
                path,
                mark,
                functools.partial(measure, person, ways, noise, self.asking, self.unseen, self.generator),
            )
        return rows

    def arms(self, population: str, number: int) -> dict[str, Arm]:
        """Of one person, after a few questions."""
        person = self.people(population)[number]
        step = learn(person, "asked", USUAL_NOISE, self.asking, self.generator, most=ANSWERS)[-1]
        name = f"{population}-{number}"
        length = math.hypot(*step.taste.preference().weights.values())
        arms = {
            LEARNED: Arm(f"{name}-learned", dict(step.taste.preference().weights)),
            FULL: Arm(f"{name}-full", dict(step.taste.preference(1 / length).weights)),
            SLIDERS: Arm(f"{name}-sliders", person.weights(self.features)),
            PAIRS: Arm(f"{name}-pairs", pairs=step.pairs),
        }
        return {arm: arms[arm] for arm in self.arguments.arms}

    def replies(self, arm: Arm) -> list[Any]:
        folder, questions = self.arguments.work / "replies", read_prompts(self.arguments.unseen)
        return arm.replies(folder, self.mark, self.generator, questions)

    def _pool(self, name: str, questions: Sequence[str]) -> JudgedPool:
        path = self.arguments.work / f"{name}.json"
        return make_pool(path, self.mark, self.generator, questions, self.instruments)


@functools.cache
def open_bench(arguments: Told) -> Bench:
    """Of this process."""
    return Bench(argparse.Namespace(**dict(arguments)))


def curves_of(arguments: Told, population: str, number: int) -> list[dict[str, Any]]:
    """In a worker."""
    return open_bench(arguments).curves(population, number)


def arms_of(arguments: Told, population: str, number: int) -> dict[str, Any]:
    """In a worker: the arms of one person, with their replies."""
    bench = open_bench(arguments)
    return {name: (arm, bench.replies(arm)) for name, arm in bench.arms(population, number).items()}


def replies_of(arguments: Told, arm: Arm) -> Any:
    """In a worker."""
    return open_bench(arguments).replies(arm)
