"""Standard Gumbel noise of a sequence, drawn ahead: a seed gives the same tokens on every device and in every batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pad_runtime.rows.sequence import Sampling

STEPS_DRAWN = 256  # steps


class NoiseTape:
    """Noise by step and candidate, drawn in blocks of steps from one stream of the seed.

    Args:
        sampling: its seed and top_k; a greedy one needs no noise.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._is_greedy, self._top_k = sampling.temperature == 0.0, sampling.top_k
        self._generator = np.random.Generator(np.random.Philox(sampling.seed))
        self._drawn = np.zeros((0, self._top_k), np.float32)

    def steps(self, step: int) -> npt.NDArray[np.float32]:
        """Noise of all steps up to one, and of the rest of its block: [n, top_k]; one row of zeros where greedy."""
        if self._is_greedy:
            return np.zeros((1, self._top_k), np.float32)
        missing = (step // STEPS_DRAWN + 1) * STEPS_DRAWN - len(self._drawn)
        if missing > 0:
            draws = self._generator.gumbel(size=(missing, self._top_k)).astype(np.float32)
            self._drawn = np.concatenate([self._drawn, draws])
        return self._drawn
