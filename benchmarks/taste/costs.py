"""What an answer costs: scoring two replies, against writing one of them; and learning from many answers."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.taste.closed_loop import config
from pad_rt import Generator, Taste
from pad_rt.taste.taste import MAX_ANSWERS

ROUNDS = 7
TOKENS = 60
_PROMPT = "How do I get better at waking up early?"


def measure_costs(generator: Generator) -> dict[str, float]:
    """Seconds, medians of interleaved rounds, and their ratio; MiB of a taste of 1,000 answers."""
    sampled = {"max_new_tokens": TOKENS, "temperature": 1.0}
    first, second = (generator.generate(_PROMPT, config={**sampled, "seed": seed}) for seed in (1, 2))
    taste = Taste(generator)
    options = {"max_new_tokens": TOKENS, "beta": config().beta}

    def answer() -> None:
        taste.prefer(_PROMPT, first.token_ids, second.token_ids, ended=False)
        taste.preference()

    def write() -> None:
        generator.generate(_PROMPT, preference=taste.preference(), config=options)

    answer()
    write()
    seconds: dict[Callable[[], None], list[float]] = {answer: [], write: []}
    for _ in range(ROUNDS):
        for act, own in seconds.items():
            started = time.perf_counter()
            act()
            own.append(time.perf_counter() - started)
    medians = {act.__name__: statistics.median(own) for act, own in seconds.items()}
    return {
        "answer_s": medians["answer"],
        "write_s": medians["write"],
        "ratio": medians["answer"] / medians["write"],
        **_many(generator),
    }


def _many(generator: Generator) -> dict[str, float]:
    """Of a taste that has heard 10,000 answers."""
    rng = np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = 20 * rng.standard_normal((10 * MAX_ANSWERS, len(Taste(generator).features)))
    taste = Taste(generator, answers=answers.tolist())
    started = time.perf_counter()
    taste.preference()
    return {
        "refit_after_10000_s": time.perf_counter() - started,
        "kept_answers": float(taste.num_answers),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
