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

from pad_runtime.bundle.manifest import Manifest, TrunkInfo


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


@dataclass(frozen=True)
class TrunkPrompts:
    """What the rows of a batch read on one trunk: each prompt of a sequence once.

    Attributes:
        prompts: token ids, [N].
        sequences: the sequence that each prompt belongs to, [N].
        rows: the prompt that each row reads, sequence by sequence, [R].
    """

    prompts: list[tuple[int, ...]]
    sequences: list[int]
    rows: list[int]

    @classmethod
    def of(cls, batch: Sequence[list[list[Row]]], trunk: int) -> TrunkPrompts:
        """Of the rows of every sequence of a batch on a trunk."""
        found: dict[tuple[int, tuple[int, ...]], int] = {}
        rows = [
            found.setdefault((number, row.prompt), len(found))
            for number, sequence in enumerate(batch)
            for row in sequence[trunk]
        ]
        return cls([prompt for _, prompt in found], [number for number, _ in found], rows)

    def positions(self, trunk: TrunkInfo, lengths: Sequence[float]) -> float:
        """Positions in the KV caches of all layers of a trunk, where each prompt has come to a length of `lengths`."""
        by_row = sum(lengths[prompt] for prompt in self.rows)
        return trunk.prompt_layers * sum(lengths) + (trunk.num_layers - trunk.prompt_layers) * by_row


_RowKey = tuple[int, tuple[int, ...], int | None, tuple[float, ...]]  # trunk, prompt, PersRM, weights


def plan_rows(manifest: Manifest, prompt: tuple[int, ...], rewards: Sequence[Reward], beta: float) -> list[list[Row]]:
    """Rows of one sequence, by trunk: the base row first, then the rewards, then their references.

    Rows that would compute the same are one row, whose coefficient is their sum.
    """
    base: _RowKey = (0, prompt, None, ())
    own, references = {base: 1.0}, dict[_RowKey, float]()
    for reward in rewards:
        persrm = manifest.persrms[reward.persrm]
        strength = beta * reward.scale
        total = strength * sum(reward.weights)
        weights, coefficient = (reward.weights, strength) if persrm.head else ((), total)
        trunk = manifest.trunk_index(persrm.trunk)
        plain = trunk == 0 and persrm.adapter is None and persrm.head is None  # the contrast: the base itself
        key: _RowKey = (trunk, reward.prompt, None if plain else reward.persrm, weights)
        own[key] = own.get(key, 0.0) + coefficient
        reference: _RowKey = base
        if persrm.reference_trunk is not None:
            reference = (manifest.trunk_index(persrm.reference_trunk), reward.prompt, None, ())
        side = own if reference in own else references
        side[reference] = side.get(reference, 0.0) - total
    rows: list[list[Row]] = [[] for _ in manifest.trunks]
    for (trunk, ids, wearer, weights), coefficient in (*own.items(), *references.items()):
        rows[trunk].append(Row(ids, coefficient, wearer, weights))
    return rows


def pad_rows(sequences: Sequence[list[list[Row]]]) -> list[list[list[Row]]]:
    """Give every sequence of a batch as many rows on each trunk, by rows that count nothing.

    They read what the sequence's first row there reads, which is read anyway, or else one token.
    """
    widths = [max(map(len, rows)) for rows in zip(*sequences, strict=True)]
    return [
        [rows + [_filler(rows)] * (width - len(rows)) for rows, width in zip(sequence, widths, strict=True)]
        for sequence in sequences
    ]


def _filler(rows: list[Row]) -> Row:
    return Row(rows[0].prompt if rows else (0,), 0.0, None, ())
