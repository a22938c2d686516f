"""Rows and coefficients: one request turned into the rows of every trunk, by one rule for every preset.

    c[base]      = 1
    c[reward j] += beta * scale_j                      (x w_j where the PersRM has no feature head)
    c[reference of j] -= beta * scale_j * sum(w_j)     (the base row, or a row of the PersRM's frozen backbone)

so that score(a) = z_base(a) + beta * sum_j scale_j * (w_j . phi_j(a)), with phi = log pi_persrm - log pi_reference,
whose normalisers are constant over the candidates and drop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pad_runtime.manifest import Manifest


@dataclass(frozen=True)
class Reward:
    """One personalized reward of a request.

    Attributes:
        persrm: index into the manifest's PersRMs.
        weights: preference weights w over that PersRM's features.
        scale: the preference's own weight beside other preferences.
        prompt: token ids the PersRM reads.
    """

    persrm: int
    weights: tuple[float, ...]
    scale: float
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One row of a trunk: what it reads, whose adapter and head it wears (None: nobody's), and how much it counts."""

    prompt: tuple[int, ...]
    coefficient: float
    persrm: int | None
    weights: tuple[float, ...]


def plan_rows(manifest: Manifest, prompt: tuple[int, ...], rewards: Sequence[Reward], beta: float) -> list[list[Row]]:
    """Rows of one sequence, by trunk: the base row first, then the rewards, then their references."""
    base_coefficient = 1.0
    reward_rows: list[list[Row]] = [[] for _ in manifest.trunks]
    reference_rows: list[list[Row]] = [[] for _ in manifest.trunks]
    for reward in rewards:
        persrm = manifest.persrms[reward.persrm]
        strength = beta * reward.scale
        total = strength * sum(reward.weights)
        own = strength if persrm.head else total
        reward_rows[manifest.trunk_index(persrm.trunk)].append(Row(reward.prompt, own, reward.persrm, reward.weights))
        if persrm.reference_trunk is None:
            base_coefficient -= total
        else:
            row = Row(reward.prompt, -total, None, ())
            reference_rows[manifest.trunk_index(persrm.reference_trunk)].append(row)
    rows = [[*own, *reference] for own, reference in zip(reward_rows, reference_rows, strict=True)]
    rows[0].insert(0, Row(prompt, base_coefficient, None, ()))
    return rows


def pad_rows(sequences: Sequence[list[list[Row]]]) -> list[list[list[Row]]]:
    """Give every sequence of a batch as many rows on each trunk, by rows that read one token and count nothing."""
    widths = [max(map(len, rows)) for rows in zip(*sequences, strict=True)]
    filler = Row((0,), 0.0, None, ())
    return [
        [rows + [filler] * (width - len(rows)) for rows, width in zip(sequence, widths, strict=True)]
        for sequence in sequences
    ]
