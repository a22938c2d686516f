"""Replies that the bundle wrote for unlike people, with phi, and scored by instruments that no training saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.kept import kept
from benchmarks.quality.estimates import Array
from benchmarks.quality.judges import load_judges
from benchmarks.quality.judges.words import per_100_words, phrases
from benchmarks.quality.replies import JudgedReply
from pad_rt import Generator, ReplyPool
from pad_rt.taste.reply_pool import PooledPrompt, PooledReply

LIMIT = 3.0  # standard deviations; beyond them an instrument says no more
_I = phrases("I, me, my, mine, myself, I'm, I've, I'd, I'll")


def instruments() -> dict[str, list[Any]]:
    """By trait, what scores replies for it: a feature's two judges, and traits that no feature is about."""
    found: dict[str, list[Any]] = {}
    for judge in load_judges():
        found.setdefault(judge.feature, []).append(judge)
    found["says I"] = [lambda replies: np.array([per_100_words(_I, reply.plain) for reply in replies])] * 2
    found["asks"] = [lambda replies: np.array([float(reply.text.count("?")) for reply in replies])] * 2
    return found


@dataclass(frozen=True)
class Norms:
    """Mean and standard deviation of each instrument over a pool, by trait and panel."""

    mean: Mapping[str, tuple[float, float]]
    spread: Mapping[str, tuple[float, float]]


class Instruments:
    """Scores replies in standard deviations of a pool: of the first replies that are scored."""

    def __init__(self) -> None:
        self._all = instruments()
        self._norms: Norms | None = None

    def __call__(self, replies: Sequence[JudgedReply]) -> dict[str, Array]:
        """By trait [replies, panels]; a reply without a word scores worst."""
        raw = {
            trait: np.stack([np.asarray(each(replies), np.float64) for each in panel], axis=-1)
            for trait, panel in self._all.items()
        }
        if self._norms is None:
            self._norms = Norms(
                {trait: tuple(np.nanmean(scores, axis=0).tolist()) for trait, scores in raw.items()},
                {trait: tuple((np.nanstd(scores, axis=0) + 1e-9).tolist()) for trait, scores in raw.items()},
            )
        return {
            trait: np.nan_to_num(
                ((scores - self._norms.mean[trait]) / self._norms.spread[trait]).clip(-LIMIT, LIMIT), nan=-LIMIT
            )
            for trait, scores in raw.items()
        }


@dataclass(frozen=True)
class JudgedPool:
    """A pool and its scores.

    Attributes:
        pool: prompts with replies and their phi.
        scores: by trait [replies of all prompts, panels].
    """

    pool: ReplyPool
    scores: Mapping[str, Array]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two replies to one prompt, as places among the replies of all prompts."""
        found, start = [], 0
        for prompt in self.pool.prompts:
            count = len(prompt.replies)
            found += [(start + i, start + j) for i in range(count) for j in range(i + 1, count)]
            start += count
        return found

    @property
    def phi(self) -> Array:
        """[replies, features]."""
        return np.array([reply.phi for prompt in self.pool.prompts for reply in prompt.replies])


def make_pool(
    path: Path, mark: str, generator: Generator, questions: Sequence[str], instruments: Instruments
) -> JudgedPool:
    """A pool that is kept."""

    def write() -> Any:
        pool = ReplyPool.write(generator, list(questions))
        return {"features": pool.features, "prompts": [asdict(prompt) for prompt in pool.prompts]}

    record = kept(path, [mark, list(questions)], write)
    prompts = tuple(
        PooledPrompt(
            prompt["prompt"],
            tuple(PooledReply(one["text"], one["cut"], tuple(one["phi"])) for one in prompt["replies"]),
        )
        for prompt in record["prompts"]
    )
    replies = [
        JudgedReply(str(prompt.prompt), reply.text, (), reply.cut) for prompt in prompts for reply in prompt.replies
    ]
    return JudgedPool(ReplyPool(tuple(record["features"]), prompts), instruments(replies))
