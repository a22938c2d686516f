"""A judge: an instrument that scores replies, higher for more of its feature."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.quality.replies import JudgedReply


@dataclass(frozen=True)
class Judge:
    """One instrument for one feature.

    Attributes:
        name: of the instrument, with its unit.
        feature: what it judges.
        score: of replies, one number each; higher is more of the feature.
        check: how well it does on texts whose answer is known, as a sentence with a figure.
        equal_words: whether replies can also be held side by side at equal length.
    """

    name: str
    feature: str
    score: Callable[[Sequence[JudgedReply]], list[float]]
    check: str = ""
    equal_words: bool = True

    def __call__(self, replies: Sequence[JudgedReply]) -> npt.NDArray[np.float64]:
        """Scores [replies]; a reply without a word has none (NaN): see `estimates.outcomes` for how it is counted."""
        return np.array(
            [
                value if re.search(r"\w", reply.text) else math.nan
                for value, reply in zip(self.score(replies), replies, strict=True)
            ]
        )


def of_plain(score: Callable[[str], float]) -> Callable[[Sequence[JudgedReply]], list[float]]:
    """A judge of replies from a score of texts: it reads the whole reply, without markup."""
    return lambda replies: [float(score(reply.plain)) for reply in replies]


def of_sentences(score: Callable[[str], float]) -> Callable[[Sequence[JudgedReply]], list[float]]:
    """The same for a score of whole sentences: it does not read the one that the cap broke off."""
    return lambda replies: [float(score(reply.sentences)) for reply in replies]


def of_replies(score: Callable[[JudgedReply], float]) -> Callable[[Sequence[JudgedReply]], list[float]]:
    """The same for a score that sees the markup, too."""
    return lambda replies: [float(score(reply)) for reply in replies]
