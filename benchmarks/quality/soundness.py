"""Whether a reply that has a trait is still a reply: it keeps to the question, is no less grammatical, and varied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.quality.embedding import shared_embedder
from benchmarks.quality.grammar import errors_per_100_words
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.variety import mtld

LEVEL = 0.95  # of the differences between two replies of the base

Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Margins:
    """What is taken for the chance of sampling.

    Attributes:
        topic: cosine by which a reply may be farther from its question than the base's.
        errors: of grammar, by which a reply may have more than the base's, per 100 words.
        variety: MTLD below which a reply repeats itself.
        questions: that they were calibrated on.
    """

    topic: float
    errors: float
    variety: float
    questions: int


@dataclass(frozen=True)
class SoundChecks:
    """Of each reply [n]."""

    on_topic: Flags
    grammatical: Flags
    varied: Flags

    @property
    def sound(self) -> Flags:
        """All three."""
        return self.on_topic & self.grammatical & self.varied


class Soundness:
    """Checks replies against the base's greedy ones to the same questions.

    A reply keeps to the question if its cosine with it (MiniLM) is at most the margin below that of the base's reply;
    it is grammatical if it has at most the margin more errors (Harper) per 100 words; it is varied if its MTLD is at
    least the floor, whatever the base does. A reply without a word passes no check.
    """

    def __init__(self, margins: Margins) -> None:
        self.margins = margins

    @classmethod
    def calibrate(cls, one: Sequence[JudgedReply], another: Sequence[JudgedReply]) -> Soundness:
        """The margins from two replies that the base sampled to each of some questions.

        19 of 20 differences between two such replies, either way round, are within a margin; 19 of 20 replies are above
        the floor of variety.
        """
        topics, errors = (
            np.concatenate([first - second, second - first])
            for first, second in ((measure(one), measure(another)) for measure in (on_topic, num_errors))
        )
        return cls(
            Margins(
                topic=float(np.quantile(topics, LEVEL)),
                errors=float(np.quantile(errors, LEVEL)),
                variety=float(np.quantile([variety(one), variety(another)], 1 - LEVEL, method="lower")),
                questions=len(one),
            )
        )

    def checks(self, replies: Sequence[JudgedReply], base: Sequence[JudgedReply]) -> SoundChecks:
        """Of replies [n], beside the base's greedy ones to the same questions [n]."""
        worded = np.array([bool(re.search(r"\w", reply.text)) for reply in replies], bool)
        return SoundChecks(
            on_topic=worded & (on_topic(replies) >= on_topic(base) - self.margins.topic),
            grammatical=worded & (num_errors(replies) <= num_errors(base) + self.margins.errors),
            varied=worded & ~self.repeats(replies),
        )

    def repeats(self, replies: Sequence[JudgedReply]) -> Flags:
        """Whether each repeats itself: its MTLD is below the floor [n]."""
        return variety(replies) < self.margins.variety


def on_topic(replies: Sequence[JudgedReply]) -> Array:
    """Cosine of each reply with its question [n]."""
    embed = shared_embedder()
    questions, texts = embed([reply.prompt for reply in replies]), embed([reply.plain for reply in replies])
    cosines: Array = np.sum(questions * texts, axis=1, dtype=np.float64)
    return cosines


def num_errors(replies: Sequence[JudgedReply]) -> Array:
    """Errors of grammar per 100 words [n]; the sentence that the cap broke off is not read."""
    return np.array([errors_per_100_words(reply.sentences) for reply in replies])


def variety(replies: Sequence[JudgedReply]) -> Array:
    """MTLD [n], infinite for replies too short to repeat themselves."""
    return np.array([mtld(reply.plain) for reply in replies])
