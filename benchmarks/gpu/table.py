"""The record as Markdown: correctness, our rows, the peers', and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.records import markdown

_OURS = (
    "device", "shape", "weights", "rows", "batch", "prompt", "base, ms", "PAD, ms", "PAD / base (quartiles)",
    "of copy bandwidth: base, PAD", "idle, us: base, PAD", "host, us", "kernels: base, PAD",
)  # fmt: skip
_MAX_RATIO, _MIN_FRACTION = 1.10, 0.80  # what the 8B shape is held to
_PEERS = (
    "system", "shape", "weights", "batch", "prompt", "base, ms", "PAD, ms", "PAD / base", "PAD-RT shared is",
)  # fmt: skip


def table(record: Mapping[str, Any]) -> str:
    """All of it."""
    measured = [row for row in record["rows"] if "sides" in row]
    ours = [row for row in measured if row["system"] == "pad-rt"]
    peers = [row for row in measured if row["system"] != "pad-rt"]
    parts = [_correctness(record["correctness"])]
    if ours:
        parts.append(markdown(_OURS, [_our_line(row) for row in ours]))
    targets = [_target(row) for row in ours if (row["shape"], row["topology"], row["batch"]) == ("8b", "shared", 1)]
    if targets:
        parts.append("Targets:\n" + "\n".join(targets))
    if peers:
        parts.append(markdown(_PEERS, [_peer_line(row, ours) for row in peers]))
    missing = _missing(record["rows"])
    if missing:
        parts.append("Not measured:\n" + "\n".join(missing))
    return "\n\n".join(parts)


def _correctness(tests: Mapping[str, Any]) -> str:
    if "passed" not in tests:
        return f"Tests on {tests['device']}: not run to an end ({tests['error']})"
    lines = [f"Tests on {tests['device']}: {tests['passed']} passed, {len(tests['failed'])} failed"]
    lines += [f"- failed: {name}" for name in tests["failed"]]
    lines += [f"- skipped {count}: {reason}" for reason, count in tests["skipped"].items()]
    return "\n".join(lines)


def _our_line(row: Mapping[str, Any]) -> list[str]:
    base, guided, ratio = row["sides"]["base"], row["sides"][row["topology"]], row["ratio"]
    both = (base, guided)
    mark = "" if base["kernels_from"] == "torch.profiler" else " nodes"
    return [
        row["device"],
        row["shape"],
        row["precision"],
        row["topology"],
        str(row["batch"]),
        str(row["prompt"]),
        _ms(base),
        _ms(guided),
        f"**{ratio['p50']:.2f}** ({ratio['p25']:.2f} to {ratio['p75']:.2f})",
        ", ".join(f"{side['copy_fraction']:.0%}" for side in both),
        ", ".join("-" if side["idle_us"] is None else f"{side['idle_us']:.0f}" for side in both),
        f"{row['host_us']['p50']:.0f}",
        ", ".join(f"{side['kernels']:.0f}" for side in both) + mark,
    ]


def _target(row: Mapping[str, Any]) -> str:
    """The 8B shape's rows against the budget of a step."""
    ratio, fraction = row["ratio"]["p50"], row["sides"]["shared"]["copy_fraction"]
    met = ratio <= _MAX_RATIO and fraction >= _MIN_FRACTION
    return (
        f"- {row['row']}: PAD / base {ratio:.3f} (at most {_MAX_RATIO:.2f}), {fraction:.0%} of copy bandwidth "
        f"(at least {_MIN_FRACTION:.0%}): {'met' if met else 'missed'}"
    )


def _peer_line(row: Mapping[str, Any], ours: Sequence[Mapping[str, Any]]) -> list[str]:
    guided = row["sides"][row["topology"]]
    same = [one for one in ours if one["topology"] == "shared" and all(one[key] == row[key] for key in _SAME)]
    times = guided["step_ms"]["p50"] / same[0]["sides"]["shared"]["step_ms"]["p50"] if same else None
    return [
        row["system"] + (", compiled" if row["compiled"] else ""),
        row["shape"],
        row["precision"],
        str(row["batch"]),
        str(row["prompt"]),
        _ms(row["sides"]["base"]),
        _ms(guided),
        f"{row['ratio']['p50']:.2f}",
        "-" if times is None else f"**{times:.1f}x** as fast",
    ]


_SAME = ("shape", "precision", "batch", "prompt")


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each reason of each group."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for kind in ("skipped", "failed"):
            if kind in row:
                lines.setdefault((f"{kind}, {row[kind]}", row["group"]), []).append(f"b{row['batch']} p{row['prompt']}")
    return [f"- {group} ({', '.join(names)}): {reason}" for (reason, group), names in lines.items()]


def _ms(side: Mapping[str, Any]) -> str:
    return f"{side['step_ms']['p50']:.2f}"
