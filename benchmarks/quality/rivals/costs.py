"""What each way to steer costs, as a ratio to the base's own decoding, taking turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.common.records import rounded
from benchmarks.quality.methods import Cell
from benchmarks.quality.rivals.torch_replies import TorchRivals
from benchmarks.quality.torch_decoding import Greedy, decode
from pad_rt.bench.rounds import Spread, compare, time_turns, turn

ROUNDS = 10
TOKENS = 24
_NO_END = -1  # an id that no token has: every reply has the length asked for


def torch_costs(
    rivals: TorchRivals, cells: Mapping[str, Cell], question: str, *, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Milliseconds of a token in torch, prompt included, by name; "base" is what the others are held against.

    A soup's weights are added before the clock starts: that is done once for a person.
    """
    prompt = rivals.backbone.encode_prompt(({"role": "user", "content": rivals.ask.replace("{x}", question)},))
    times: dict[str, list[float]] = {name: [] for name in cells}
    for round_ in range(rounds + 1):  # the first one warms up
        for name in turn(list(cells), round_):
            with rivals.changed(cells[name]):
                start = time.perf_counter()
                decode([prompt], Greedy(rivals.backbone), eos_id=_NO_END, max_new_tokens=TOKENS)
                seconds = time.perf_counter() - start
            if round_:
                times[name].append(seconds / TOKENS)
    return _figures(times, "base")


def request_costs(
    requests: Mapping[str, Callable[[], object]], *, base: str, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Milliseconds of a whole request, by name."""
    for request in requests.values():
        request()
    return _figures(time_turns(requests, rounds=rounds), base)


def _figures(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    figures = {}
    for name, seconds in times.items():
        ratio = compare(seconds, times[base])
        spread = {"ms": 1e3 * Spread.of(seconds).p50, "ratio": ratio.p50, "p25": ratio.p25, "p75": ratio.p75}
        figures[name] = rounded(spread, 3)
    return figures
