"""The record as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.records import markdown

_PEERS = (
    "model", "system", "PAD, ms a token", "base alone, ms", "PAD / base", "PAD-RT in the same rounds: PAD, base, ms",
    "PAD-RT is faster (quartiles)", "guided tokens",
)  # fmt: skip
_SHAPES = ("shape", "weights", "k", "prompt", "base, ms", "shared, ms", "shared / base", "pair, ms", "pair / base")


def tables(record: Mapping[str, Any]) -> str:
    """Both tables, and what was left out."""
    peers, shapes = record["peers"], record["shapes"]
    parts = []
    if peers:
        parts.append(markdown(_PEERS, [line for row in peers if "skipped" not in row for line in _peer_lines(row)]))
    if shapes:
        parts.append(markdown(_SHAPES, [_shape_line(row) for row in shapes if "skipped" not in row]))
    missing = [f"{row['row']}: {row['skipped']}" for row in (*peers, *shapes) if "skipped" in row]
    missing += [f"{row['row']} against {side}: {why}" for row in peers for side, why in row["left_out"].items()]
    if missing:
        parts.append("Not measured:\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts)


def _peer_lines(row: Mapping[str, Any]) -> list[list[str]]:
    """One line for each of ours that took turns with it."""
    own = row["sides"][row["side"]]
    lines = []
    for side, times in row["times_ours"].items():
        ours = row["sides"][side]
        lines.append(
            [
                row["model"],
                row["label"],
                f"{own['step_ms']['p50']:.1f}",
                f"{own['base_step_ms']['p50']:.1f}",
                f"{own['ratio']:.2f}",
                f"{ours['step_ms']['p50']:.1f}, {ours['base_step_ms']['p50']:.1f} ({side})",
                f"**{times['p50']:.2f}x** ({times['p25']:.2f} to {times['p75']:.2f})",
                _describe_tokens(row) if side == next(iter(row["times_ours"])) else "",
            ]
        )
    return lines


def _describe_tokens(row: Mapping[str, Any]) -> str:
    """Whether they are ours; in fewer bits each engine rounds in its own way."""
    index, count = row["first_difference"], len(row["sides"][row["side"]]["tokens"])
    if index is None:
        return f"the same {count}"
    return f"first differ at {index} of {count}" + ("" if row["exact"] else " (its own rounding)")


def _shape_line(row: Mapping[str, Any]) -> list[str]:
    steps, ratios = row["step_ms"], row["ratio_to_base"]
    cells = [row["shape"], row["precision"], str(row["top_k"]), str(row["prompt"]), f"{steps['base']['p50']:.1f}"]
    for side, ratio in ratios.items():
        cells += [f"{steps[side]['p50']:.1f}", f"**{ratio['p50']:.2f}** ({ratio['p25']:.2f} to {ratio['p75']:.2f})"]
    return cells
