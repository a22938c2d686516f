"""The rows of all parts, judged by several worker processes: each takes rows from one list."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.quality.design import ROWS, Design
from benchmarks.quality.judges import Judge, load_judges
from benchmarks.quality.mixtures import mixture_row
from benchmarks.quality.replies import ReplyStore
from benchmarks.quality.rows import trait_row
from benchmarks.quality.scores import Scores
from benchmarks.quality.sliders import front_row, slider_rows
from benchmarks.quality.soundness import Margins, Soundness


@dataclass(frozen=True)
class Judging:
    """What a worker needs to know.

    Attributes:
        store, prompts: the replies, and what they reply to.
        margins: of soundness.
        design: of the benchmark.
        numbers: by part, its number of questions, in pairs.
        sampled: see `mixture_row`.
    """

    store: ReplyStore
    prompts: tuple[str, ...]
    margins: Margins
    design: Design
    numbers: tuple[tuple[str, int], ...]
    sampled: bool

    def scores(self) -> Scores:
        """For rows, with the judges of the design's traits."""
        return Scores(self.store, self.prompts, design_judges(self.design), Soundness(self.margins))

    def parts(self, parts: Sequence[str], *, workers: int) -> dict[str, list[dict[str, Any]]]:
        """The rows of each part."""
        tasks = [(part, place) for part in parts for place in range(self.length(part))]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = dict(zip(tasks, pool.map(functools.partial(_judge, self), tasks), strict=True))
        return {
            part: list(itertools.chain(*(rows[part, place] for place in range(self.length(part))))) for part in parts
        }

    def length(self, part: str) -> int:
        """Tasks of a part."""
        if part in ROWS:
            return len(self.design.asked(part))
        return {"mixtures": len(self.design.mixtures), "slider": 1, "front": len(self.design.sliders)}[part]

    def judge(self, scores: Scores, part: str, place: int) -> list[dict[str, Any]]:
        """One row of a part, or the few that go together."""
        number = dict(self.numbers)[part]
        if part in ROWS:
            return [trait_row(scores, self.design.asked(part)[place], number)]
        if part == "mixtures":
            return [mixture_row(scores, self.design, self.design.mixtures[place], number, sampled=self.sampled)]
        if part == "slider":
            return slider_rows(scores, self.design, number)
        return [front_row(scores, self.design, self.design.sliders[place], number)]


def design_judges(design: Design) -> list[Judge]:
    """Of the design's traits."""
    return [judge for judge in load_judges() if judge.feature in design.traits]


_opened: dict[str, Scores] = {}  # of a worker, which has one


def _judge(judging: Judging, task: tuple[str, int]) -> list[dict[str, Any]]:
    """In a worker: every reply is judged once."""
    if not _opened:
        torch.set_num_threads(1)
        _opened["scores"] = judging.scores()
    return judging.judge(_opened["scores"], *task)
