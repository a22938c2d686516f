"""What one step weighed, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pad_rt.explain.choice import Choice, weigh
from pad_runtime.decode.trace import SequenceTrace


def make(base: list[float], scores: list[float], chosen: int) -> Choice:
    """Candidates with the ids 10, 11, and so on."""
    ids = np.arange(10, 10 + len(base))
    numbers = np.array(base, np.float32), np.array(scores, np.float32)
    return weigh(SequenceTrace(ids, numbers[0], np.zeros((1, len(base)), np.float32), numbers[1]), chosen)


def test_a_choice_that_the_reward_changed() -> None:
    """Chances of 1/2, 1/4, 1/4; the reward makes the second three times what it was."""
    base, added = [math.log(2.0), 0.0, 0.0], [7.0, 7.0 + math.log(6.0), 7.0]
    choice = make(base, [sum(pair) for pair in zip(base, added, strict=True)], 11)
    assert choice.changed
    assert (choice.chosen.id, choice.favourite.id) == (11, 10)
    assert [candidate.id for candidate in choice.candidates] == [11, 10, 12]
    assert [candidate.base_chance for candidate in choice.candidates] == pytest.approx([1 / 4, 1 / 2, 1 / 4])
    assert [candidate.guided_chance for candidate in choice.candidates] == pytest.approx([6 / 9, 2 / 9, 1 / 9])
    assert choice.gain == pytest.approx(math.log((6 / 9) / (1 / 4)))
    # The 7 that all have in common chooses nothing: rewards are counted from the base's first choice.
    assert [candidate.reward for candidate in choice.candidates] == pytest.approx([math.log(6.0), 0, 0], abs=1e-6)
    for candidate in choice.candidates:
        assert candidate.score == pytest.approx(candidate.base_logit + candidate.reward)


def test_a_choice_in_spite_of_the_reward() -> None:
    choice = make([3.0, 0.0], [2.0, 1.5], 10)
    assert not choice.changed
    assert choice.gain < 0
    assert choice.gain == pytest.approx(-math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-3.0)))


def test_no_reward_moves_nothing() -> None:
    choice = make([3.0, 0.0], [3.0, 0.0], 11)  # a sample
    assert (choice.gain, choice.changed) == (0.0, True)


def test_ties_and_lone_candidates() -> None:
    """A token as good as the base's first choice is no change of it."""
    assert not make([1.0, 1.0], [1.0, 2.0], 11).changed
    lone = make([5.0], [-2.0], 10)
    assert (lone.gain, lone.chosen.guided_chance, lone.changed) == (0.0, 1.0, False)


def test_what_was_not_allowed_is_no_candidate() -> None:
    choice = make([9.0, 1.0, 0.0], [-1e30, 1.5, 0.0], 11)
    assert [candidate.id for candidate in choice.candidates] == [11, 12]
    assert not choice.changed


def test_strengths_beyond_measure() -> None:
    choice = make([9.0, 1.0], [-1e25, 1e25], 11)
    assert choice.chosen.guided_chance == 1.0
    assert math.isfinite(choice.gain)
