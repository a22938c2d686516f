"""Parts of replies as the named arrays that the score graph takes, and its outputs as scores: pure, with no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.rows.padding import pad_right
from pad_runtime.rows.row import Row
from pad_runtime.score.parts import Part
from pad_runtime.score.request import ReplyScores, RewardPrompt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Place:
    """Where values stand in the outputs: some readings of a trunk (None: the base's own), and columns of these."""

    trunk: str | None
    readings: slice
    columns: slice

    def take(self, outputs: Mapping[str, Array]) -> Array:
        """Those values: [n, columns]."""
        if self.trunk is None:
            return outputs[contract.BASE_LOG_PROBS][self.readings, None]
        name = contract.trunk_prefix(self.trunk) + contract.READING_LOG_PROBS
        return outputs[name][self.readings, self.columns]


@dataclass(frozen=True)
class ScoreRun:
    """One run of the score graph.

    Attributes:
        active: PersRMs whose adapters and heads are bound, ascending.
        arrays: all inputs but LoRA factors and feature heads, by name.
        shapes: of all outputs, float32, by name.
    """

    active: tuple[int, ...]
    arrays: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    _tokens: tuple[slice, ...]  # of each part
    _rewards: tuple[tuple[tuple[_Place, _Place], ...], ...]  # of each part: a reward and its reference

    def scores(self, outputs: Mapping[str, Array]) -> list[ReplyScores]:
        """The scores of each part, from the graph's outputs."""
        return [
            ReplyScores(
                outputs[contract.TOKEN_LOG_PROBS][tokens],
                tuple(reward.take(outputs) - reference.take(outputs) for reward, reference in rewards),
            )
            for tokens, rewards in zip(self._tokens, self._rewards, strict=True)
        ]


@dataclass
class _Texts:
    """What one trunk reads: texts, rows that read them, and readings of those rows, each once."""

    texts: dict[tuple[int, ...], int] = field(default_factory=dict)
    rows: dict[Row, int] = field(default_factory=dict)
    places: list[tuple[int, int]] = field(default_factory=list)  # of each reading: row and position
    tokens: list[int] = field(default_factory=list)  # of each reading: the scored token whose candidates it reads
    found: dict[tuple[int, int, int], slice] = field(default_factory=dict)

    def row(self, trunk: int, text: tuple[int, ...], persrm: int | None) -> int:
        """The row that reads a text with the adapter of a PersRM, or none."""
        number = self.texts.setdefault(text, len(self.texts))
        return self.rows.setdefault(Row(trunk, number, persrm), len(self.rows))

    def read(self, row: int, position: int, token: int, count: int) -> slice:
        """Readings of `count` states of a row from `position` on, for the scored tokens from `token` on."""
        key = (row, position, token)
        if key not in self.found:
            self.found[key] = slice(len(self.places), len(self.places) + count)
            self.places += [(row, position + index) for index in range(count)]
            self.tokens += range(token, token + count)
        return self.found[key]


class ScoreInputs:
    """Arrays of one bundle's score graph."""

    def __init__(self, manifest: Manifest, factors: LoraFactors, heads: FeatureHeads) -> None:
        self._manifest, self._factors, self._heads = manifest, factors, heads

    def make(self, parts: Sequence[Part], top_k: int) -> ScoreRun:
        """One run over parts of replies.

        Args:
            parts: what is scored; at least one token.
            top_k: candidates at each token, itself among them.
        """
        trunks = [_Texts() for _ in self._manifest.trunks]
        active = tuple(sorted({reward.persrm for part in parts for reward in part.request.rewards}))
        base_places: list[tuple[int, int]] = []
        tokens: list[slice] = []
        rewards: list[tuple[tuple[_Place, _Place], ...]] = []
        scored = [token for part in parts for token in part.request.reply[part.start : part.stop]]
        for part in parts:
            first = len(base_places)
            tokens.append(slice(first, first + len(part)))
            base = trunks[0].row(0, part.text(part.request.prompt), None)
            position = len(part.request.prompt) - 1 + part.start
            base_places += [(base, position + index) for index in range(len(part))]
            rewards.append(
                tuple(self._reward(trunks, part, reward, tokens[-1], active) for reward in part.request.rewards)
            )
        arrays: dict[str, Array] = {
            contract.SCORED_TOKENS: np.array(scored, np.int64),
            contract.BASE_PLACE: np.array(base_places, np.int64),
            contract.MAX_TOP_K: np.array([min(top_k, self._manifest.vocab_size)], np.int64),
        }
        of_base = (contract.TOKEN_LOG_PROBS, contract.BASE_LOG_PROBS)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(of_base, (len(scored),))
        for index, texts in enumerate(trunks):
            arrays |= self._trunk(index, texts, active)
            if contract.takes_readings(index, len(trunks)):
                trunk = self._manifest.trunks[index]
                num_heads = len(self._heads.features(trunk, active)) if trunk.has_features else 0
                name = contract.trunk_prefix(trunk.name) + contract.READING_LOG_PROBS
                shapes[name] = (max(1, len(texts.places)), 1 + num_heads)
        return ScoreRun(active, arrays, shapes, tuple(tokens), tuple(rewards))

    def _reward(
        self, trunks: Sequence[_Texts], part: Part, reward: RewardPrompt, tokens: slice, active: tuple[int, ...]
    ) -> tuple[_Place, _Place]:
        """Rows and readings of a reward and its reference, and where their values will stand."""
        info = self._manifest.persrms[reward.persrm]
        text, position = part.text(reward.prompt), len(reward.prompt) - 1 + part.start

        def place(trunk: str, persrm: int | None, columns: slice) -> _Place:
            index = self._manifest.trunk_index(trunk)
            row = trunks[index].row(index, text, persrm)
            return _Place(trunk, trunks[index].read(row, position, tokens.start, len(part)), columns)

        plain = slice(0, 1)  # the hidden state itself, with no feature head
        features = self._heads.features(self._manifest.trunks[self._manifest.trunk_index(info.trunk)], active)
        columns = plain
        if info.feature_head:
            first = 1 + features.index((reward.persrm, 0))
            columns = slice(first, first + len(info.features))
        own = place(info.trunk, reward.persrm if info.adapter else None, columns)
        if info.reference_trunk is None:
            return own, _Place(None, tokens, plain)
        return own, place(info.reference_trunk, None, plain)

    def _trunk(self, index: int, texts: _Texts, active: tuple[int, ...]) -> dict[str, Array]:
        """Inputs of one trunk. With nothing to read, one row reads one token: an input is never empty."""
        trunk = self._manifest.trunks[index]
        at = contract.trunk_prefix(trunk.name)
        read, rows = list(texts.texts) or [(0,)], list(texts.rows) or [Row(index, 0)]
        ids = pad_right(read)
        values: dict[str, Array] = {
            contract.INPUT_IDS: ids,
            contract.SEQLENS_K: np.array([len(text) - 1 for text in read], np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(ids.shape[1], np.int32),
            contract.ROW_PROMPT: np.array([row.prompt for row in rows], np.int64),
            contract.READING_PLACE: np.array(texts.places or [(0, 0)], np.int64),
            contract.READING_TOKEN: np.array(texts.tokens or [0], np.int64),
        }
        gates = self._factors.gates(trunk, active, rows)
        return {at + name: value for name, value in values.items()} | gates
