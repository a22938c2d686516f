"""The record as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.common.records import markdown
from benchmarks.quality.methods import LABELS

WANTED = {
    ("cheerful", 1): "cheerful",
    ("cheerful", -1): "critical",
    ("simple", 1): "simple",
    ("simple", -1): "academic",
    ("concise", 1): "concise",
    ("concise", -1): "detailed",
}
_HEAD = (
    "wanted", "method", "judge (base)", "win rate, %", "win / lose", "equal words", "vs prompted", "distinct-2",
    "repeats itself, % (base)", "perplexity", "tokens (cut by the cap, %)",
)  # fmt: skip


def tables(record: Mapping[str, Any]) -> str:
    """All parts that the record has."""
    parts = record["parts"]
    titled: list[tuple[str, Callable[[Any], str], str]] = [
        ("Methods", main_table, "main"),
        ("Preferences in words", words_table, "words"),
        ("Strength beta", lambda rows: sweep_table(rows, "beta"), "beta"),
        ("Candidates k", lambda rows: sweep_table(rows, "top_k"), "k"),
        ("Slider", slider_table, "slider"),
        ("Mixtures", mixture_table, "mixtures"),
        ("Time a token", timing_table, "timings"),
    ]
    return "\n\n".join(f"## {title}\n\n{make(parts[part])}" for title, make, part in titled if part in parts)


def main_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown(_HEAD, [_cells(row, LABELS[row["method"]]) for row in rows])


def words_table(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = {True: "seen", False: "unseen"}
    named = [(row, LABELS[row["method"]] + (f", {kinds[row['seen']]}" if row["text"] else "")) for row in rows]
    return markdown(_HEAD, [_cells(row, name) for row, name in named])


def sweep_table(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Win rate and perplexity by user, a column for each value."""
    values = list(dict.fromkeys(row[key] for row in rows))
    lines = []
    for user in dict.fromkeys((row["feature"], row["weight"]) for row in rows):
        own = {row[key]: row for row in rows if (row["feature"], row["weight"]) == user}
        told = [f"{percent(primary(own[value])['to_base']['rate'][0])}, {ratio(own[value])}" for value in values]
        lines.append([wanted(*user), *told])
    return "Win rate against the base in %, perplexity over the base's.\n\n" + markdown(
        ["wanted", *(f"{key} {value:g}" for value in values)], lines
    )


def slider_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["feature"],
            row["judge"],
            *(f"{mean[0]:.2f}" for mean in row["means"]),
            "yes" if row["monotonic"] else "no",
        ]
        for row in rows
    ]
    return markdown(["feature", "judge", *(f"w = {w:g}" for w in rows[0]["weights"]), "never falls"], lines)


def mixture_table(part: Mapping[str, Any]) -> str:
    lines = []
    for row in part["rows"]:
        weights = ", ".join(f"{name} {weight:+.2g}" for name, weight in row["weights"].items())
        features = ", ".join(f"{name} {percent(own['rate'][0])}" for name, own in row["features"].items())
        regret = "{:.2f} ({:.2f} to {:.2f})".format(*row["regret"])
        rate = interval(row["to_base"]["rate"])
        lines.append([weights, f"{row['distance']:.2f}", rate, features, regret, ratio(row)])
    told = []
    for kind, own in part["distance"].items():
        value, low, high = own["loss_rank_correlation"]
        told.append(
            f"Rank correlation of distance and loss, {kind}: {value:+.2f} ({low:+.2f} to {high:+.2f}) over "
            f"{own['users']} users; of distance and regret: {own['regret_rank_correlation']:+.2f}."
        )
    head = ["weights", "distance", "win rate by utility, %", "by feature, %", "regret, sd", "perplexity / base"]
    return markdown(head, lines) + "\n\n" + "\n".join(told)


def choice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Over all users of each setting: how many replies repeat themselves, and how often they win over the base."""
    lines = []
    for setting in dict.fromkeys(penalties(row["penalties"]) for row in rows):
        own = [row for row in rows if penalties(row["penalties"]) == setting]
        means = [mean(row["repeats"] for row in own), mean(primary(row)["to_base"]["rate"][0] for row in own)]
        lines.append([setting, *map(percent, means), " ".join(percent(row["repeats"]) for row in own)])
    return markdown(["setting", "repeats itself, %", "win rate against the base, %", "by user"], lines)


def repetition_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """With the penalties and without; win rates are against bases without."""
    head = ["wanted", "method", "penalties", "repeats itself, %", "win rate, %", "vs prompted"]
    lines = [
        [
            wanted(row["feature"], row["weight"]),
            LABELS[row["method"]],
            penalties(row["penalties"]),
            interval([row["repeats"], *row["repeats_interval"]]),
            interval(primary(row)["to_base"]["rate"]),
            interval(primary(row)["to_prompted"]["rate"]) if primary(row)["to_prompted"] else "",
            ratio(row),
            f"{row['distinct_2_ratio'][0]:.2f}x",
            f"{row['tokens']:.0f}",
        ]
        for row in rows
    ]
    return markdown([*head, "perplexity / base", "distinct-2 / base", "tokens"], lines)


def penalties(setting: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items()) or "none"


def timing_table(timings: Mapping[str, Mapping[str, float]]) -> str:
    labels = {str(name): label for name, label in LABELS.items()}
    lines = [
        [labels.get(name, name), f"{own['p50']:.1f} ({own['p25']:.1f} to {own['p75']:.1f})", f"{own['ratio']:.2f}"]
        for name, own in timings.items()
    ]
    return markdown(["method", "ms a token (quartiles)", "over base, median of rounds"], lines)


def wanted(feature: str, weight: float) -> str:
    """What a user wants, in a word."""
    return WANTED.get((feature, 1 if weight > 0 else -1), f"{feature} {weight:+g}")


def primary(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The primary judge's opinion."""
    opinion: Mapping[str, Any] = next(own for own in row["judges"].values() if own["primary"])
    return opinion


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def interval(estimate: Sequence[float]) -> str:
    return f"**{percent(estimate[0])}** ({percent(estimate[1])} to {percent(estimate[2])})"


def ratio(row: Mapping[str, Any]) -> str:
    value = row["perplexity_ratio"][0]
    return "-" if value is None else f"{value:.2f}x"


def _cells(row: Mapping[str, Any], name: str) -> list[str]:
    own = primary(row)
    equal = own["to_base_equal_words"]
    return [
        wanted(row["feature"], row["weight"]),
        name,
        f"{own['mean'][0]:.2f} ({own['base_mean'][0]:.2f})",
        interval(own["to_base"]["rate"]),
        f"{percent(own['to_base']['win'])} / {percent(own['to_base']['lose'])}",
        interval(equal["rate"]) if equal else "",
        "" if own["to_prompted"]["tie"] == 1 else interval(own["to_prompted"]["rate"]),
        f"{row['distinct_2'][0]:.2f} ({row['distinct_2_ratio'][0]:.2f}x)",
        f"{percent(row['repeats'])} ({percent(row['base_repeats'])})",
        f"{row['perplexity'][0] or 0:.1f} ({ratio(row)})",
        f"{row['tokens']:.0f} (cut {percent(row['cut'])}, base {percent(row['base_cut'])})",
    ]
