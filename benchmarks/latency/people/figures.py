"""What times of tokens come to, and tables of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from benchmarks.common.records import markdown, rounded
from benchmarks.latency.people.task import Served
from pad_rt.bench.rounds import Spread, compare

_PEOPLE = (
    "model", "system", "people", "tokens/s", "one after the other", "at once / one by one (quartiles)",
    "first token, ms: first, last person", "between tokens, ms: median, p95", "tokens as alone",
)  # fmt: skip
_NEWCOMER = ("model", "system", "others", "between their tokens, ms: p95", "largest", "newcomer's first token, ms")


def describe_people(rounds: Sequence[Mapping[str, Served]], counts: Sequence[int]) -> list[dict[str, Any]]:
    """A record for each count of people, from rounds of "N at once" and "person N"."""
    records = []
    for count in counts:
        together = [one[f"{count} at once"] for one in rounds]
        alone = [[one[f"person {person}"] for person in range(count)] for one in rounds]
        at_once, by_turns = [_speed([served]) for served in together], [_speed(each) for each in alone]
        same = [
            number
            for served, each in zip(together, alone, strict=True)
            for number, other in enumerate(each)
            if served.tokens[number] == other.tokens[0]
        ]
        records.append(
            {
                "people": count,
                "tokens": sum(map(len, together[0].tokens)),
                "tokens_per_s": statistics.median(at_once),
                "tokens_per_s_one_by_one": statistics.median(by_turns),
                "ratio": rounded(asdict(compare(at_once, by_turns)), 3),
                "first_token_ms": _first_tokens(together),
                "first_token_ms_alone": statistics.median(1e3 * s.times[0][0] for each in alone for s in each),
                "step_ms": rounded(asdict(Spread.of([gap for served in together for gap in _gaps(served)])), 2),
                "same_as_alone": len(same) / (count * len(rounds)),
            }
        )
    return records


def describe_newcomer(rounds: Sequence[Served]) -> dict[str, Any]:
    """How long the others waited for tokens while the newcomer's prompt was read."""
    gaps: list[float] = []
    first = []
    for served in rounds:
        assert served.arrived is not None
        *others, newcomer = served.times
        first.append(1e3 * (newcomer[0] - served.arrived))
        gaps += [
            1e3 * (later - earlier)
            for times in others
            for earlier, later in pairwise(times)
            if later > served.arrived and earlier < newcomer[0]
        ]
    return {
        "others": len(rounds[0].times) - 1,
        "gap_ms": rounded(asdict(Spread.of(gaps)), 1),
        "largest_gap_ms": round(max(gaps), 1),
        "first_token_ms": statistics.median(first),
        "gaps": len(gaps),
    }


def tables(record: Mapping[str, Any]) -> str:
    """Both tables, and what was left out."""
    people, newcomer, missing = [], [], []
    for model in record["models"]:
        for side in model["sides"].values():
            at = [model["model"], side["label"]]
            people += [[*at, *_people_cells(row)] for row in side["people"]]
            came = side["newcomer"]
            newcomer.append(
                [
                    *at,
                    str(came["others"]),
                    f"{came['gap_ms']['p95']:.0f}",
                    f"**{came['largest_gap_ms']:.0f}**",
                    f"{came['first_token_ms']:.0f}",
                ]
            )
        missing += [f"- {model['model']}, {side}: {why}" for side, why in model["left_out"].items()]
    parts = [markdown(_PEOPLE, people), markdown(_NEWCOMER, newcomer)]
    return "\n\n".join(parts + ["Not measured:\n" + "\n".join(missing)] * bool(missing))


def _people_cells(row: Mapping[str, Any]) -> list[str]:
    ratio, first, step = row["ratio"], row["first_token_ms"], row["step_ms"]
    return [
        str(row["people"]),
        f"{row['tokens_per_s']:.1f}",
        f"{row['tokens_per_s_one_by_one']:.1f}",
        f"**{ratio['p50']:.2f}** ({ratio['p25']:.2f} to {ratio['p75']:.2f})",
        f"{first['first']:.0f}, {first['last']:.0f}",
        f"{step['p50']:.1f}, {step['p95']:.1f}",
        f"{row['same_as_alone']:.0%}",
    ]


def _speed(runs: Sequence[Served]) -> float:
    """Tokens a second of runs that came one after the other."""
    tokens = sum(len(ids) for served in runs for ids in served.tokens)
    return tokens / sum(max(times[-1] for times in served.times) for served in runs)


def _first_tokens(rounds: Sequence[Served]) -> dict[str, float]:
    """Milliseconds until the first, the middle and the last person had a token."""
    firsts = [sorted(1e3 * times[0] for times in served.times) for served in rounds]
    places = {"first": 0, "median": len(firsts[0]) // 2, "last": -1}
    return {name: round(statistics.median(each[place] for each in firsts), 1) for name, place in places.items()}


def _gaps(served: Served) -> list[float]:
    return [1e3 * (later - earlier) for times in served.times for earlier, later in pairwise(times)]
