"""The named arrays that a graph takes for a batch, made without a device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.rows.batch import Batch, Member, TrunkPart
from pad_runtime.rows.padding import pad_right

Array = npt.NDArray[Any]
END_OFFERED = 1e9  # beyond the logits of any model
_KEEP_ALL = 2.0  # for top_p 1: probabilities sum to 1 only up to rounding, so the limit is set above


class InputBuilder:
    """Arrays of the graphs of one bundle."""

    def __init__(self, manifest: Manifest, factors: LoraFactors, heads: FeatureHeads) -> None:
        self._manifest, self._factors, self._heads = manifest, factors, heads

    def arrays(self, batch: Batch, names: Collection[str], *, capacity: int | None) -> dict[str, Array]:
        """All inputs but KV caches, LoRA factors and feature heads, by name.

        Args:
            batch: what the run reads.
            names: the graph's inputs; others are left out.
            capacity: positions of each cache, for a step that is used again and again: `total_sequence_length` then
                stays the same at any length; None for a run that is used once.
        """
        values = _choice(batch.members, batch.max_top_k, self._manifest)
        coefficients: list[Array] = []
        for index, (trunk, part) in enumerate(zip(self._manifest.trunks, batch.trunks, strict=False)):
            at = contract.trunk_prefix(trunk.name)
            values |= {at + name: value for name, value in _reading(part).items()}
            if capacity is not None:
                values[at + contract.TOTAL_SEQUENCE_LENGTH] = np.array(capacity, np.int32)
            if at + contract.ROW_PROMPT in names:  # a graph of rows; the base's own reads no adapter's file
                values |= self._factors.gates(trunk, batch.active, [each.row for each in part.rows])
            if batch.reads(index) and at + contract.READING_ROW in names:
                values |= self._readings(batch, index, trunk)
                coefficients.append(_coefficients(batch, index))
        values[contract.BASE_ROW] = _base_rows(batch)
        first = [member.sequence.readings[0].coefficient if batch.scores else 1.0 for member in batch.members]
        values[contract.BASE_COEFFICIENT] = _column(first, np.float32)
        if coefficients:
            values[contract.COEFFICIENTS] = np.concatenate(coefficients, axis=1)
        return {name: value for name, value in values.items() if name in names}

    def _readings(self, batch: Batch, index: int, trunk: TrunkInfo) -> dict[str, Array]:
        at = contract.trunk_prefix(trunk.name)
        parts = batch.readings(index)
        values: dict[str, Array] = {
            at + contract.READING_ROW: np.array([part.row for part in parts], np.int64),
            at + contract.READING_SEQUENCE: np.array([part.sequence for part in parts], np.int64),
        }
        if trunk.has_features:
            weights = self._heads.weights(self._heads.columns(trunk, parts), parts)
            values[at + contract.READING_WEIGHTS] = weights
        return values


def _reading(part: TrunkPart) -> dict[str, Array]:
    """New tokens of a trunk's prompts, right-padded, and their positions."""
    new = np.array([len(prompt.ids) for prompt in part.prompts], np.int64)
    past = np.array([prompt.past for prompt in part.prompts], np.int64)
    ids = pad_right([prompt.ids for prompt in part.prompts])
    return {
        contract.INPUT_IDS: ids,
        contract.SEQLENS_K: (past + new - 1).astype(np.int32),
        contract.LAST_TOKEN: (new - 1)[:, None],
        contract.TOTAL_SEQUENCE_LENGTH: np.array((past + ids.shape[1]).max(), np.int32),
        contract.PROMPT_SEQUENCE: np.array([prompt.sequence for prompt in part.prompts], np.int64)[:, None],
        contract.ROW_PROMPT: np.array([row.prompt for row in part.rows], np.int64),
    }


def _base_rows(batch: Batch) -> Array:
    """The row of the base's trunk that each sequence's candidates come from."""
    rows = {part.sequence: number for number, part in enumerate(batch.trunks[0].rows) if part.index == 0}
    return np.array([rows.get(sequence, 0) for sequence in range(len(batch.members))], np.int64)


def _coefficients(batch: Batch, trunk: int) -> Array:
    """[S, L]: zero outside a sequence's own readings."""
    parts = batch.readings(trunk)
    values = np.zeros((len(batch.members), len(parts)), np.float32)
    for column, part in enumerate(parts):
        values[part.sequence, column] = part.reading.coefficient
    return values


def _choice(members: Sequence[Member], max_top_k: int, manifest: Manifest) -> dict[str, Array]:
    """Inputs of controls, candidates and choice."""

    def column(value: Callable[[Member], float], dtype: npt.DTypeLike = np.float32) -> Array:
        return _column([value(member) for member in members], dtype)

    noise, vocab_size = _noise(members, max_top_k, manifest.max_length), manifest.vocab_size
    return {
        contract.MAX_TOP_K: np.array([max_top_k], np.int64),
        contract.TOP_K: column(lambda member: member.sequence.sampling.top_k, np.int64),
        contract.END_BONUS: column(lambda member: END_OFFERED * member.sequence.sampling.offer_end),
        contract.TEMPERATURE: column(lambda member: member.sequence.sampling.temperature),
        contract.TOP_P: column(lambda member: _top_p(member.sequence.sampling.top_p)),
        contract.MIN_P: column(lambda member: member.sequence.sampling.min_p),
        contract.NOISE: noise,
        contract.LAST_NOISE: np.array([noise.shape[1] - 1], np.int64),
        contract.STEP: column(lambda member: member.step, np.int64),
        contract.BIAS: _bias(members, vocab_size),
        contract.ALLOWED: _allowed(members, vocab_size),
        contract.WRITTEN: _written(members, vocab_size),
        contract.REPETITION_PENALTY: column(lambda member: member.sequence.controls.repetition_penalty),
        contract.PRESENCE_PENALTY: column(lambda member: member.sequence.controls.presence_penalty),
        contract.FREQUENCY_PENALTY: column(lambda member: member.sequence.controls.frequency_penalty),
    }


def _top_p(value: float) -> float:
    return value if value < 1.0 else _KEEP_ALL


def _noise(members: Sequence[Member], max_top_k: int, max_steps: int) -> Array:
    """[S, n, k]: a sequence's own candidates have its own noise, whoever else is in the batch."""
    drawn = [member.noise.steps(member.step)[:max_steps] for member in members]
    values = np.zeros((len(members), max(map(len, drawn)), max_top_k), np.float32)
    for value, own in zip(values, drawn, strict=True):
        value[: len(own), : own.shape[1]] = own
    return values


def _bias(members: Sequence[Member], vocab_size: int) -> Array:
    if not any(member.sequence.controls.bias for member in members):
        return np.zeros((1, 1), np.float32)
    values = np.zeros((len(members), vocab_size), np.float32)
    for value, member in zip(values, members, strict=True):
        bias = member.sequence.controls.bias
        value[list(bias)] = list(bias.values())
    return values


def _allowed(members: Sequence[Member], vocab_size: int) -> Array:
    if all(member.allowed is None for member in members):
        return np.full((1, 1), 0xFF, np.uint8)
    values = np.full((len(members), -(-vocab_size // 8)), 0xFF, np.uint8)
    for value, member in zip(values, members, strict=True):
        if member.allowed is not None:
            value[:] = member.allowed
    return values


def _written(members: Sequence[Member], vocab_size: int) -> Array:
    """0.5 for a token that only the prompt has, and 1 more for each time that it was chosen."""
    if not any(member.sequence.controls.counts for member in members):
        return np.zeros((len(members), 1), np.float32)
    values = np.zeros((len(members), vocab_size), np.float32)
    for value, member in zip(values, members, strict=True):
        if member.sequence.controls.counts:
            value[list(member.prompt_ids)] = contract.IN_PROMPT
            np.add.at(value, list(member.chosen_ids), 1.0)
    return values


def _column(values: Sequence[float], dtype: npt.DTypeLike) -> Array:
    return np.array(values, dtype)[:, None]
