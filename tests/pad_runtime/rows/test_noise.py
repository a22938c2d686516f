"""Noise of a sequence: one stream of its seed, in whatever blocks it is drawn and whoever is in the batch."""

from __future__ import annotations

import numpy as np
import pytest

from pad_runtime.rows.noise import STEPS_DRAWN, NoiseTape
from pad_runtime.rows.sequence import Sampling


def stream(seed: int, steps: int, k: int) -> np.ndarray:
    """The documented noise: standard Gumbel from Philox of the seed, [steps, k]."""
    return np.random.Generator(np.random.Philox(seed)).gumbel(size=(steps, k)).astype(np.float32)


@pytest.mark.parametrize(
    "asked", [(0,), (STEPS_DRAWN - 1, STEPS_DRAWN), (3, 700, 5), (STEPS_DRAWN, 0, 3 * STEPS_DRAWN)]
)
def test_blocks_continue_one_stream(asked: tuple[int, ...]) -> None:
    tape = NoiseTape(Sampling(top_k=7, temperature=1.0, seed=11))
    for step in asked:
        drawn = tape.steps(step)
        assert drawn.shape[0] % STEPS_DRAWN == 0
        assert step < drawn.shape[0] <= STEPS_DRAWN * (max(asked) // STEPS_DRAWN + 1)
        np.testing.assert_array_equal(drawn, stream(11, len(drawn), 7))
        assert not np.array_equal(drawn, stream(12, len(drawn), 7))  # control


def test_what_was_drawn_stays() -> None:
    """A sequence that begins again at step 0 draws what it drew."""
    tape = NoiseTape(Sampling(top_k=3, temperature=0.5, seed=2))
    first = tape.steps(0).copy()
    tape.steps(STEPS_DRAWN)
    np.testing.assert_array_equal(tape.steps(0)[:STEPS_DRAWN], first)


def test_a_greedy_sequence_needs_one_row_of_nothing() -> None:
    tape = NoiseTape(Sampling(top_k=5, seed=3))
    for step in (0, 1000):
        assert tape.steps(step).tolist() == [[0.0] * 5]
