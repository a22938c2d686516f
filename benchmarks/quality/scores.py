"""What judges and checks say of a store's replies; each cell is judged once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.estimates import Array, outcomes
from benchmarks.quality.judges import Judge
from benchmarks.quality.methods import Cell
from benchmarks.quality.replies import JudgedReply, ReplyStore
from benchmarks.quality.soundness import SoundChecks, Soundness
from pad_train.pairs.pair_choice import repeats_itself


class Scores:
    """Of one store.

    Args:
        prompts: the questions, in the order of the replies.
        judges: two a feature.
        soundness: holds a reply against the base's.
    """

    def __init__(
        self, store: ReplyStore, prompts: Sequence[str], judges: Sequence[Judge], soundness: Soundness
    ) -> None:
        self._store, self._prompts, self._soundness = store, prompts, soundness
        self._judges: dict[str, list[Judge]] = {}
        for judge in judges:
            self._judges.setdefault(judge.feature, []).append(judge)
        self._replies: dict[Cell, tuple[JudgedReply, ...]] = {}
        self._scores: dict[tuple[Cell, str, int], Array] = {}
        self._checks: dict[tuple[Cell, Cell, int], SoundChecks] = {}

    def judges(self, feature: str) -> Sequence[Judge]:
        return self._judges[feature]

    def replies(self, cell: Cell, number: int) -> tuple[JudgedReply, ...]:
        """The replies to so many of the first questions."""
        if cell not in self._replies:
            self._replies[cell] = self._store.load(cell, self._prompts).replies
        replies = self._replies[cell][:number]
        if len(replies) < number:
            raise LookupError(f"{cell.slug} has {len(replies)} replies of {number}")
        return replies

    def score(self, cell: Cell, judge: Judge, number: int) -> Array:
        """[questions]; NaN for an empty reply."""
        key = cell, judge.name, number
        if key not in self._scores:
            self._scores[key] = judge(self.replies(cell, number))
        return self._scores[key]

    def wins(self, cell: Cell, other: Cell, judge: Judge, weight: float, number: int) -> Array:
        """`outcomes` against another cell, for a user of this weight [questions]."""
        return outcomes(*(weight * self.score(each, judge, number) for each in (cell, other)))

    def equal_words(self, cell: Cell, other: Cell, judge: Judge, weight: float, number: int) -> Array | None:
        """`wins` after both replies to a question are cut to the shorter one's number of words; None where a judge
        counts words.
        """
        if not judge.equal_words:
            return None
        cut: list[list[JudgedReply]] = [[], []]
        for pair in zip(self.replies(cell, number), self.replies(other, number), strict=True):
            shorter = min(len(reply.plain.split()) for reply in pair)
            for side, reply in zip(cut, pair, strict=True):
                side.append(reply.first_words(shorter) if shorter else reply)
        return outcomes(*(weight * judge(side) for side in cut))

    def checks(self, cell: Cell, base: Cell, number: int) -> SoundChecks:
        """Beside the base's greedy replies."""
        key = cell, base, number
        if key not in self._checks:
            self._checks[key] = self._soundness.checks(self.replies(cell, number), self.replies(base, number))
        return self._checks[key]

    def repeats(self, cell: Cell, number: int) -> dict[str, Array]:
        """Whether replies repeat themselves, 0 or 1 [questions]: by the rule that keeps such replies out of the
        training, and by the floor of MTLD.
        """
        replies = self.replies(cell, number)
        by_rule = np.array([repeats_itself(reply.text) for reply in replies])
        return {"rule": by_rule.astype(float), "mtld": self._soundness.repeats(replies).astype(float)}
