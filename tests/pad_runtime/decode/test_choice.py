"""What a step chooses of the scores, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.loaded_bundle import Bundle
from tests.support.guided_steps import NUM_STEPS, ask, open_slots, run


def gumbel(seed: int, steps: int, k: int) -> np.ndarray:
    """The documented noise: standard Gumbel from Philox of the sequence's seed, [steps, k]."""
    return np.random.Generator(np.random.Philox(seed)).gumbel(size=(steps, k)).astype(np.float32)


def nucleus(scores: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Indices kept, best first: the smallest set of candidates whose mass reaches top_p."""
    order = np.argsort(-scores, kind="stable")
    logits = scores[order].astype(np.float64) / temperature
    chances = np.exp(logits - logits.max())
    mass = np.cumsum(chances / chances.sum())
    return order[: int(np.searchsorted(mass, top_p)) + 1]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.7, 1.0), (2.0, 0.9), (5.0, 0.6), (1.0, 0.3), (1.5, 0.99), (4.0, 1e-6)]
)
def test_sampling_is_gumbel_argmax_inside_the_nucleus(
    bundle: Bundle, decoder: Decoder, temperature: float, top_p: float
) -> None:
    """Every step of a batch recomputed in NumPy from the trace; and the control, the next seed's noise."""
    k, seed = 8, 40
    options = {"top_k": k, "temperature": temperature, "top_p": top_p, "seed": seed}
    slots = open_slots(decoder, ask(bundle.manifest, 0, 1, 2, **options))
    noise = [gumbel(seed + index, NUM_STEPS + 1, k) for index in range(4)]
    cut = wrong = 0
    for turn in range(NUM_STEPS):
        step = decoder.step(slots, trace=True)
        for index, trace in enumerate(step.trace()):
            scores = trace.scores
            kept = nucleus(scores, temperature, top_p)
            cut += k - len(kept)
            ranked = np.sort(scores)[::-1]
            chosen = [
                int(trace.candidates[kept[np.argmax(scores[kept] / temperature + draw[turn][: len(kept)])]])
                for draw in (noise[index], noise[index + 1])
            ]
            assert np.all(np.diff(ranked) <= 0)
            assert step.ids[index] == chosen[0]
            wrong += step.ids[index] != chosen[1]
    assert (cut > 0) is (top_p < 1.0)
    assert (wrong > 0) is (top_p > 1e-3)


def test_temperature_zero_is_greedy_whatever_the_seed_and_top_p(bundle: Bundle, decoder: Decoder) -> None:
    def tokens(**options: float) -> list[list[int]]:
        return run(decoder, ask(bundle.manifest, 0, 1, **options))

    greedy = tokens()
    assert greedy == tokens(temperature=0.0, seed=7, top_p=0.4)
    assert greedy == tokens(temperature=3.0, seed=7, top_p=1e-9)
    assert greedy != tokens(temperature=3.0, seed=7)
