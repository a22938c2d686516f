"""Rewards turned into rows and readings, by one rule for every preset.

    c[base]      = 1
    c[reward j] += beta * scale_j                      (x w_j where the PersRM has no feature head)
    c[reference of j] -= beta * scale_j * sum(w_j)     (the base row, or a row of the PersRM's frozen backbone)

so that score(a) = z_base(a) + beta * sum_j scale_j * (w_j . phi_j(a)), with phi = log pi_persrm - log pi_reference,
whose normalisers are constant over the candidates and cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.rows.row import Reading, Row
from pad_runtime.rows.sequence import Controls, Sampling, SequenceSpec

_BASE = Row(0, 0)
_Weights = tuple[float, ...]


@dataclass(frozen=True)
class Reward:
    """One personalized reward of a request.

    Attributes:
        persrm: index into the manifest's PersRMs.
        weights: preference weights w over that PersRM's features.
        scale: the preference's own weight beside other preferences.
        prompt: token ids that the PersRM reads.
    """

    persrm: int
    weights: _Weights
    scale: float
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class RowPlan:
    """Rows and readings of one sequence.

    Attributes:
        rows, readings: as of a `SequenceSpec`.
        prompts: token ids by prompt; the first is the base's.
    """

    rows: tuple[Row, ...]
    readings: tuple[Reading, ...]
    prompts: tuple[tuple[int, ...], ...]

    def sequence(self, sampling: Sampling, controls: Controls | None = None) -> SequenceSpec:
        """The sequence, to be opened in a decoder."""
        return SequenceSpec(self.rows, self.readings, sampling, controls or Controls())

    def cached_positions(self, index: int, trunk: TrunkInfo, lengths: Sequence[float]) -> float:
        """Positions in the caches of all layers of a trunk, where each prompt has come to a length of `lengths`."""
        read = [row.prompt for row in self.rows if row.trunk == index]
        by_prompt, by_row = (sum(lengths[prompt] for prompt in prompts) for prompts in (set(read), read))
        return trunk.prompt_layers * by_prompt + (trunk.num_layers - trunk.prompt_layers) * by_row

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))


@dataclass
class _Terms:
    """Coefficients by row and weights, in the order in which they were met."""

    coefficients: dict[Row, dict[_Weights, float]] = field(default_factory=dict)

    def add(self, row: Row, weights: _Weights, coefficient: float) -> None:
        readings = self.coefficients.setdefault(row, {})
        readings[weights] = readings.get(weights, 0.0) + coefficient


def plan_rows(manifest: Manifest, prompt: tuple[int, ...], rewards: Sequence[Reward], beta: float) -> RowPlan:
    """The rows of one sequence: the base's first, then the rewards', then those of their references.

    Rewards of one PersRM on one prompt share a row. Where logits are linear in the feature head, their readings are one
    reading too, of the weights' sum: any number of preferences by weights costs one row and one reading.
    """
    prompts = {prompt: 0}
    terms, references = _Terms(), _Terms()
    terms.add(_BASE, (), 1.0)
    for reward in rewards:
        persrm = manifest.persrms[reward.persrm]
        number = prompts.setdefault(reward.prompt, len(prompts))
        strength = beta * reward.scale
        total = strength * sum(reward.weights)
        trunk = manifest.trunk_index(persrm.trunk)
        plain = trunk == 0 and persrm.adapter is None and persrm.feature_head is None  # the contrast: the base itself
        row = Row(trunk, number, None if plain else reward.persrm)
        terms.add(row, *((reward.weights, strength) if persrm.feature_head else ((), total)))
        reference = _BASE
        if persrm.reference_trunk is not None:
            reference = Row(manifest.trunk_index(persrm.reference_trunk), number)
        side = terms if reference in terms.coefficients else references
        side.add(reference, (), -total)
    for row, read in references.coefficients.items():
        for weights, coefficient in read.items():
            terms.add(row, weights, coefficient)
    readings = [
        Reading(index, weights, coefficient)
        for index, (row, read) in enumerate(terms.coefficients.items())
        for weights, coefficient in (_merged(read) if manifest.trunks[row.trunk].mixes_heads else read.items())
    ]
    return RowPlan(tuple(terms.coefficients), tuple(readings), tuple(prompts))


def _merged(read: dict[_Weights, float]) -> Iterable[tuple[_Weights, float]]:
    """Readings of one row as one reading; those without weights stay as they are, for they pass no feature head."""
    weighed = {weights: coefficient for weights, coefficient in read.items() if weights}
    if len(weighed) < 2:
        return read.items()
    total = sum(map(abs, weighed.values()))
    parts = [
        [weight * (coefficient / total if total else 0.0) for weight in weights]
        for weights, coefficient in weighed.items()
    ]
    mixed = tuple(map(sum, zip(*parts, strict=True)))
    return [item for item in read.items() if not item[0]] + [(mixed, total)]
