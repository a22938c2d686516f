"""What people's opinions of a blind sheet say: of guided replies, of the judges, and of each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.common.records import markdown
from benchmarks.quality.blind_sheet import FIRST, OTHERS, SAME, SECOND, Opinion, SheetPair
from benchmarks.quality.estimates import bootstrap, mean, outcomes
from benchmarks.quality.judges import Judge
from benchmarks.quality.replies import JudgedReply


def tables(pairs: Sequence[SheetPair], people: Sequence[Sequence[Opinion]], judges: Sequence[Judge]) -> str:
    """Of people's opinions [people][pairs]: win rates, agreement with each judge, and with each other."""
    more = [[person[index].has_more for person in people] for index in range(len(pairs))]
    better = [[person[index].answers_better for person in people] for index in range(len(pairs))]
    asked = (("has more of what was asked for", more), ("answers better", better))
    wins = [
        [f"guided {what} than {other}", *_share(guided_wins(pairs, answers, other))]
        for what, answers in asked
        for other in OTHERS
    ]
    agreement = [
        [f"{judge.name} ({judge.feature}) says as people do", *_share(same_opinion(judge, pairs, more))]
        for judge in judges
    ]
    alphas = [
        [f"{what}: people with each other (Krippendorff's alpha)", "", f"{krippendorff_alpha(answers):.2f}", ""]
        for what, answers in asked
    ]
    return markdown(("", "pairs", "share", "95 % interval"), [*wins, *agreement, *alphas])


def guided_wins(pairs: Sequence[SheetPair], answers: Sequence[Sequence[str]], other: str) -> list[float]:
    """Of each pair with the other method, the share of its answers that the guided reply won; "same" is half."""
    return [
        float(np.mean([0.5 if answer == SAME else answer == pair.guided for answer in given if answer]))
        for pair, given in zip(pairs, answers, strict=True)
        if pair.other == other and any(given)
    ]


def same_opinion(judge: Judge, pairs: Sequence[SheetPair], answers: Sequence[Sequence[str]]) -> list[float]:
    """Of each pair of the judge's feature, the share of decided answers that name the reply that the judge prefers.

    Half where the judge finds no difference; pairs about which nobody is decided are left out.
    """
    own = [
        (pair, [answer for answer in given if answer in (FIRST, SECOND)])
        for pair, given in zip(pairs, answers, strict=True)
        if pair.feature == judge.feature
    ]
    own = [(pair, decided) for pair, decided in own if decided]
    if not own:
        return []
    weights = np.array([pair.weight for pair, _ in own])
    first, second = (
        weights * judge([JudgedReply(pair.question, pair.replies[side], (), cut=True) for pair, _ in own])
        for side in (0, 1)
    )
    return [
        won * decided.count(FIRST) / len(decided) + (1 - won) * decided.count(SECOND) / len(decided)
        for (_, decided), won in zip(own, outcomes(first, second), strict=True)
    ]


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float:
    """Krippendorff's alpha for nominal answers (2011): 1 where all agree, 0 by chance, NaN where nothing is compared.

    alpha = 1 - observed disagreement / expected disagreement: among the answers to a unit, and among all answers.

    Args:
        units: the answers to each; "" is none, and units with fewer than two do not count.
    """
    given = [Counter(answer for answer in answers if answer) for answers in units]
    given = [counts for counts in given if counts.total() > 1]
    total = sum(given, Counter[str]())
    observed = sum(_unequal(counts) / (counts.total() - 1) for counts in given)
    expected = _unequal(total) / max(1, total.total() - 1)
    return 1 - observed / expected if expected else math.nan


def _unequal(counts: Counter[str]) -> int:
    """Ordered pairs of different answers."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())


def _share(values: Sequence[float]) -> tuple[str, str, str]:
    """Number of pairs, their mean, and its interval over pairs."""
    if not values:
        return "0", "", ""
    found = bootstrap(mean, np.array(values))
    return str(len(values)), f"{found.value:.0%}", f"{found.low:.0%} to {found.high:.0%}"
