"""The record as Markdown tables. Two judges' figures stand side by side, the first one's before the slash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.records import markdown
from benchmarks.quality.claims import MORE_REPEATS, PERPLEXITY, SOUND_TO_BASE, SOUND_TO_PROMPTED, claims
from benchmarks.quality.methods import LABELS
from benchmarks.quality.mixtures import ORDINALS
from benchmarks.quality.traits import wanted

Rows = Sequence[Mapping[str, Any]]
_HEAD = (
    "wanted", "method", "win over base, %", "at equal words", "sound win, %", "win over prompted base, %",
    "at equal words", "sound win, %", "on topic / grammatical / varied, %",
    "repeats itself by rule / by MTLD, % (base)", "perplexity / base", "tokens (base)",
)  # fmt: skip


def tables(record: Mapping[str, Any]) -> str:
    """All parts that the record has."""
    parts = record["parts"]
    titled: list[tuple[str, Callable[[Any], str], str]] = [
        ("Claims", claims_table, "main"),
        ("Methods", rows_table, "main"),
        ("Sampled", rows_table, "sampled"),
        ("More methods", rows_table, "others"),
        ("Strength beta", lambda rows: sweep_table(rows, "beta"), "beta"),
        ("Candidates k", lambda rows: sweep_table(rows, "top_k"), "k"),
        ("Penalties", lambda rows: sweep_table(rows, "penalties"), "penalties"),
        ("Without the penalty", rows_table, "unpenalized"),
        ("Mixtures", mixture_table, "mixtures"),
        ("Slider", slider_table, "slider"),
        ("Two sliders", front_table, "front"),
        ("Time a token", timing_table, "timings"),
    ]
    return "\n\n".join(f"## {title}\n\n{make(parts[part])}" for title, make, part in titled if part in parts)


def claims_table(rows: Rows) -> str:
    """Which directions of a feature do what a shipped one must."""
    head = [
        "wanted",
        f"sound win over base, % (>= {percent(SOUND_TO_BASE)})",
        f"over prompted base (>= {percent(SOUND_TO_PROMPTED)})",
        f"more repetition, points (<= {percent(MORE_REPEATS)})",
        f"perplexity (<= {PERPLEXITY:g})",
        "holds",
    ]
    lines = [
        [
            wanted(*user),
            interval(own.to_base),
            interval(own.to_prompted),
            percent(own.more_repeats),
            f"{own.perplexity:.2f}x" if own.perplexity else "-",
            "yes" if own.holds else "no",
        ]
        for user, own in claims(rows).items()
    ]
    return "By the judge that gives fewer.\n\n" + markdown(head, lines)


def rows_table(rows: Rows) -> str:
    return markdown(_HEAD, [_cells(row) for row in rows])


def sweep_table(rows: Rows, key: str) -> str:
    """Sound win, repetition and perplexity by user, a column for each value."""
    values = list(dict.fromkeys(setting(row[key]) for row in rows))
    lines = []
    for user in dict.fromkeys((row["feature"], row["weight"]) for row in rows):
        own = {setting(row[key]): row for row in rows if (row["feature"], row["weight"]) == user}
        told = [
            f"{_both(own[value], 'to_base', 'sound')}, {repeats(own[value]['repeats'])}, {ratio(own[value])}"
            for value in values
        ]
        lines.append([wanted(*user), *told])
    return "Sound win over the base in %, share that repeats itself in %, perplexity over the base's.\n\n" + markdown(
        ["wanted", *(f"{key} {value}" for value in values)], lines
    )


def mixture_table(rows: Rows) -> str:
    head = ["wanted", "joint win, %", "by chance", "sound joint win", "each alone", "repeats itself, %", "perplexity"]
    lines = []
    for row in rows:
        told = [row[ordinal] for ordinal in ORDINALS]
        each = [" ".join(percent(rate[0]) for rate in own["each"].values()) for own in told]
        lines.append(
            [
                ", ".join(row["wanted"]),
                " / ".join(interval(own["joint"]) for own in told),
                " / ".join(percent(own["chance"][0]) if "chance" in own else "-" for own in told),
                " / ".join(percent(own["sound_joint"][0]) for own in told),
                " / ".join(each),
                f"{repeats(row['repeats'])} ({repeats(row['base_repeats'])})",
                ratio(row),
            ]
        )
    return markdown(head, lines)


def slider_table(rows: Rows) -> str:
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


def front_table(rows: Rows) -> str:
    """Hypervolumes; the base alone has 1."""
    groups = ("pad", "pad_ends", "prompted", "random")
    lines = []
    for row in rows:
        for ordinal in ORDINALS:
            volumes = [row[ordinal][group]["hypervolume"] for group in groups]
            told = ["{:.2f} ({:.2f} to {:.2f})".format(*volume) for volume in volumes]
            lines.append([" and ".join(row["features"]), ", ".join(row[ordinal]["judges"]), *told])
    head = ["sliders", "judges", "PAD, 25 points", "PAD, 8 points", "base, prompted, 8", "random reward, 8"]
    return "Hypervolume; the base alone has 1.\n\n" + markdown(head, lines)


def timing_table(timings: Mapping[str, Mapping[str, float]]) -> str:
    labels = {str(name): label for name, label in LABELS.items()}
    lines = [
        [labels[name], f"{own['p50']:.1f} ({own['p25']:.1f} to {own['p75']:.1f})", f"{own['ratio']:.2f}"]
        for name, own in timings.items()
    ]
    return markdown(["method", "ms a token (quartiles)", "over base, median of rounds"], lines)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def interval(estimate: Sequence[float]) -> str:
    return f"**{percent(estimate[0])}** ({percent(estimate[1])} to {percent(estimate[2])})"


def ratio(row: Mapping[str, Any]) -> str:
    value = row["perplexity_ratio"][0]
    return "-" if value is None else f"{value:.2f}x"


def repeats(shares: Mapping[str, Sequence[float]]) -> str:
    """Share of replies that repeat themselves, by each measure."""
    return " / ".join(percent(share[0]) for share in shares.values())


def setting(value: Any) -> str:
    """A value of a swept setting in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:g}" for name, number in value.items()) or "none"
    return f"{value:g}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        wanted(row["feature"], row["weight"]),
        LABELS[row["method"]] + (f", {row['seeds']} seeds" if row["seeds"] > 1 else ""),
        _both(row, "to_base", "win"),
        _both(row, "to_base", "equal_words"),
        _both(row, "to_base", "sound", show=interval),
        _both(row, "to_prompted", "win"),
        _both(row, "to_prompted", "equal_words"),
        _both(row, "to_prompted", "sound", show=interval),
        " / ".join(percent(row["checks"][check][0]) for check in ("on_topic", "grammatical", "varied")),
        f"{repeats(row['repeats'])} ({repeats(row['base_repeats'])})",
        ratio(row),
        f"{row['tokens']:.0f} ({row['base_tokens']:.0f})",
    ]


def _both(
    row: Mapping[str, Any], other: str, key: str, show: Callable[[Any], str] = lambda rate: percent(rate[0])
) -> str:
    """A figure by each judge; nothing for what is held against itself."""
    opinions = [judge[other] for judge in row["judges"].values()]
    if None in opinions:
        return ""
    return " / ".join(show(own[key]) if own[key] else "-" for own in opinions)
