"""Stored replies and judges into figures: one section for each part of the benchmark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import estimates
from benchmarks.quality.estimates import Array, Estimate, bootstrap, outcomes, win_rate
from benchmarks.quality.judges import Judge
from benchmarks.quality.methods import (
    IN_WORDS,
    MAIN,
    MIXTURES,
    SLIDER,
    Asked,
    Cell,
    asked,
    base_cell,
    corners,
    pad_cell,
    trait_cell,
    users,
)
from benchmarks.quality.replies import JudgedReply, ReplyStore, is_complete
from benchmarks.quality.traits import Trait
from pad_train.pairs.pair_choice import repeats_itself


class Evaluation:
    """Figures of one store.

    Args:
        num_prompts: how many of the prompts the main part has.
        num_sweep: how many the other parts have; always the first ones.
        num_perplexities: how many replies of a cell have a perplexity.
    """

    def __init__(
        self,
        store: ReplyStore,
        prompts: Sequence[str],
        traits: Mapping[str, Trait],
        judges: Sequence[Judge],
        *,
        num_prompts: int,
        num_sweep: int,
        num_perplexities: int,
    ) -> None:
        self._store, self._prompts, self._traits = store, prompts, traits
        self._judges = {name: [judge for judge in judges if judge.feature == name] for name in traits}
        self._num_prompts, self._num_sweep, self._num_perplexities = num_prompts, num_sweep, num_perplexities
        self._replies: dict[Cell, tuple[JudgedReply, ...]] = {}
        self._scores: dict[tuple[Cell, str, int], Array] = {}

    # -- the parts ----------------------------------------------------------------------------------------------------

    def figures(self, part: str) -> Any:
        """Of one of `PARTS`."""
        if part == "slider":
            return self.slider()
        if part == "mixtures":
            return self.mixtures()
        return self.rows(asked(part, self._traits), self._num_prompts if part == "main" else self._num_sweep)

    def rows(self, cells: Sequence[Asked], number: int) -> list[dict[str, Any]]:
        """Each by the judges of its trait, on so many prompts."""
        return [self._row(one, number) for one in cells]

    def slider(self) -> list[dict[str, Any]]:
        """The judge's mean as the weight goes from -1 to 1, and whether it ever falls (at the cap it is flat)."""
        rows = []
        for name in self._traits:
            cells = [pad_cell({name: weight}, self._traits) for weight in SLIDER]
            judge = self._judges[name][0]
            scores = np.stack([self._score(cell, judge, self._num_sweep) for cell in cells], axis=-1)  # [prompts, 5]
            means = [bootstrap(estimates.mean, column) for column in scores.T]
            values = [estimate.value for estimate in means]
            rows.append(
                {
                    "feature": name,
                    "judge": judge.name,
                    "weights": list(SLIDER),
                    "means": [estimate.rounded() for estimate in means],
                    "monotonic": all(low <= high for low, high in itertools.pairwise(values)),
                    "steps": [
                        bootstrap(_mean_difference, scores[:, index], scores[:, index + 1]).rounded()
                        for index in range(len(SLIDER) - 1)
                    ],
                    "rise": bootstrap(_mean_difference, scores[:, 0], scores[:, -1]).rounded(),
                }
            )
        return rows

    def mixtures(self) -> dict[str, Any]:
        """Users who want several traits at once, none of them a user of the training, and what distance costs."""
        scales = {name: self._scale(name) for name in self._traits}
        rows = [self._mixture_row(weights, scales, kind="mixture") for weights in MIXTURES]
        for name in self._traits:
            rows += [self._mixture_row({name: weight}, scales, kind="slider") for weight in SLIDER if weight]
        return {
            "utility": "sum_i w_i s_i / |w|, s_i the primary judge's score over its standard deviation in `scales`",
            "scales": {name: round(scale, 4) for name, scale in scales.items()},
            "rows": [{name: value for name, value in row.items() if name != "won"} for row in rows],
            "distance": {kind: self._distance(rows, kind) for kind in ("mixture", "slider")},
        }

    def frontier(self) -> list[dict[str, Any]]:
        """Win rate against the base over everyone who wants one trait, by method, all on the same prompts."""
        rows = []
        for method in (*MAIN, *IN_WORDS):
            won = []
            for trait, weight in users(self._traits):
                won.append(self._won(trait_cell(method, trait, weight), trait.name, weight))
            # [prompts]: all users of one prompt are drawn together
            rows.append({"method": method, "rate": bootstrap(estimates.mean, np.mean(won, axis=0)).rounded()})
        scales = {name: self._scale(name) for name in self._traits}
        mixed = [self._mixture_row(weights, scales, kind="mixture")["won"] for weights in MIXTURES]
        return [*rows, {"method": "mixture", "rate": bootstrap(estimates.mean, np.mean(mixed, axis=0)).rounded()}]

    def examples(self, number: int) -> list[dict[str, Any]]:
        """Prompts with the replies of all methods, to be read."""
        examples = []
        for index, prompt in enumerate(self._prompts[:number]):
            caps = sorted({trait.max_new_tokens for trait in self._traits.values()})
            base = {f"{cap} tokens": self._get(base_cell(cap), index + 1)[index].text for cap in caps}
            replies: dict[str, Any] = {"base": base}
            for trait, weight in users(self._traits):
                replies[f"{trait.name} {weight:+g}"] = {
                    method: self._get(trait_cell(method, trait, weight), index + 1)[index].text for method in MAIN
                }
            examples.append({"prompt": prompt, "replies": replies})
        return examples

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _row(self, one: Asked, number: int) -> dict[str, Any]:
        """One cell by the judges of one trait, beside the base and, where its replies are there, the prompted base."""
        cell, trait, weight, base = one.cell, one.trait, one.weight, one.base
        prompted = one.prompted if self._has(one.prompted, number) else None
        opinions = {}
        for judge in self._judges[trait.name]:
            own, plain = (self._score(each, judge, number) for each in (cell, base))
            told = self._score(prompted, judge, number) if prompted else None
            opinions[judge.name] = {
                "primary": judge.primary,
                "mean": bootstrap(estimates.mean, own).rounded(),
                "base_mean": bootstrap(estimates.mean, plain).rounded(),
                "to_base": win_rate(outcomes(weight * own, weight * plain)).record(),
                "to_prompted": None if told is None else win_rate(outcomes(weight * own, weight * told)).record(),
                "to_base_equal_words": self._equal_words(judge, weight, cell, base, number),
                "to_prompted_equal_words": prompted and self._equal_words(judge, weight, cell, prompted, number),
            }
        row = {"feature": trait.name, "weight": weight, "method": cell.method, **one.setting}
        return {**row, "prompts": number, "judges": opinions, **self._texture(cell, base, number)}

    def _equal_words(self, judge: Judge, weight: float, cell: Cell, other: Cell, number: int) -> dict[str, Any] | None:
        """The win rate after both replies to a prompt are cut to the shorter one's number of words."""
        if not judge.equal_words:
            return None
        cut: list[list[JudgedReply]] = [[], []]
        for pair in zip(self._get(cell, number), self._get(other, number), strict=True):
            shorter = min(len(reply.plain.split()) for reply in pair)
            for side, reply in zip(cut, pair, strict=True):
                side.append(reply.first_words(shorter) if shorter else reply)
        own, against = judge(cut[0]), judge(cut[1])
        return win_rate(outcomes(weight * own, weight * against)).record()

    def _texture(self, cell: Cell, base: Cell, number: int) -> dict[str, Any]:
        """What the text is like, whatever it says."""
        replies, plain = self._get(cell, number), self._get(base, number)
        distinct, of_base = (
            np.array([estimates.distinct_2(reply.plain) for reply in side]) for side in (replies, plain)
        )
        both = [
            (own.perplexity, other.perplexity)
            for own, other in zip(replies[: self._num_perplexities], plain, strict=False)
            if own.perplexity is not None and other.perplexity is not None
        ]
        repeat = np.array([float(repeats_itself(reply.text)) for reply in replies])
        own_ppl, base_ppl = (np.array(side) for side in zip(*both or [(math.nan, math.nan)], strict=True))
        return {
            "distinct_2": bootstrap(estimates.mean, distinct).rounded(),
            "distinct_2_ratio": bootstrap(_mean_ratio, distinct, of_base).rounded(),
            "perplexity": bootstrap(_median, own_ppl).rounded(),
            "perplexity_ratio": bootstrap(estimates.median_ratio, own_ppl, base_ppl).rounded(),
            "repeats": round(float(np.mean(repeat)), 4),
            "repeats_interval": bootstrap(estimates.mean, repeat).rounded()[1:],
            "base_repeats": round(float(np.mean([repeats_itself(reply.text) for reply in plain])), 4),
            "tokens": round(float(np.mean([reply.num_tokens for reply in replies])), 2),
            "cut": round(float(np.mean([reply.cut for reply in replies])), 4),
            "base_cut": round(float(np.mean([reply.cut for reply in plain])), 4),
            "empty": round(float(np.mean([not reply.plain for reply in replies])), 4),
        }

    # -- several traits -----------------------------------------------------------------------------------------------

    def _mixture_row(self, weights: Mapping[str, float], scales: Mapping[str, float], *, kind: str) -> dict[str, Any]:
        """One user by their own utility, beside the base and the best of the trained weights at hand.

        regret = max over w' of mean U_w(reply of w') - mean U_w(reply of w), w' in {w, the corners on w's side}
        """
        cell = pad_cell(weights, self._traits)
        own, plain = (self._utility(each, weights, scales) for each in (cell, base_cell(cell.max_new_tokens)))
        at_corners = np.stack([self._utility(each, weights, scales) for each in corners(cell, self._traits)], axis=-1)
        won = outcomes(own, plain)
        by_feature = {
            name: win_rate(self._won(cell, name, math.copysign(1, weight))).record() for name, weight in weights.items()
        }
        rate = win_rate(won)
        regret = bootstrap(_regret, np.concatenate([own[:, None], at_corners], axis=-1))
        return {
            "kind": kind,
            "weights": {name: round(weight, 4) for name, weight in weights.items()},
            "distance": round(estimates.distance_to_trained(list(weights.values())), 4),
            "max_new_tokens": cell.max_new_tokens,
            "to_base": rate.record(),
            "loss": _complement(rate.rate).rounded(),
            "regret": regret.rounded(),
            "features": by_feature,
            **self._texture(cell, base_cell(cell.max_new_tokens), self._num_sweep),
            "won": won,
        }

    def _distance(self, rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
        """Does the loss grow with the distance to the nearest trained weights?"""
        chosen = [row for row in rows if row["kind"] == kind or row["distance"] == 0]
        distances = np.array([row["distance"] for row in chosen])
        won = np.stack([row["won"] for row in chosen], axis=-1)  # [prompts, users]
        loss_rank = bootstrap(
            lambda sample: estimates.rank_correlation(
                np.broadcast_to(distances, sample.mean(axis=-2).shape), 1 - sample.mean(axis=-2)
            ),
            won,
        )
        regrets = np.array([row["regret"][0] for row in chosen])
        return {
            "users": len(chosen),
            "loss_rank_correlation": loss_rank.rounded(),
            "regret_rank_correlation": round(float(estimates.rank_correlation(distances, regrets)), 4),
        }

    def _won(self, cell: Cell, name: str, weight: float) -> Array:
        """`outcomes` against the base, for who wants so much of one feature, by its primary judge."""
        cells = (cell, base_cell(cell.max_new_tokens))
        own, plain = (weight * self._score(each, self._judges[name][0], self._num_sweep) for each in cells)
        return outcomes(own, plain)

    def _utility(self, cell: Cell, weights: Mapping[str, float], scales: Mapping[str, float]) -> Array:
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        scores = {name: self._score(cell, self._judges[name][0], self._num_sweep) for name in weights}
        total: Array = np.sum([weights[name] / norm * scores[name] / scales[name] for name in weights], axis=0)
        return total

    def _scale(self, name: str) -> float:
        """Standard deviation of the primary judge over the replies of the base and of PAD at +1 and -1."""
        cells = [pad_cell({name: weight}, self._traits) for weight in (0.0, 1.0, -1.0)]
        scores = np.concatenate([self._score(cell, self._judges[name][0], self._num_sweep) for cell in cells])
        return float(np.nanstd(scores)) or 1.0

    # -- replies and scores -------------------------------------------------------------------------------------------

    def _has(self, cell: Cell, number: int) -> bool:
        return is_complete(self._store, cell, self._prompts[:number], num_perplexities=0)

    def _get(self, cell: Cell, number: int) -> tuple[JudgedReply, ...]:
        if cell not in self._replies:
            self._replies[cell] = self._store.load(cell, self._prompts).replies
        replies = self._replies[cell][:number]
        if len(replies) < number:
            raise LookupError(f"{cell.slug} has {len(replies)} replies of {number}")
        return replies

    def _score(self, cell: Cell, judge: Judge, number: int) -> Array:
        key = cell, judge.name, number
        if key not in self._scores:
            self._scores[key] = judge(self._get(cell, number))
        return self._scores[key]


def _mean_difference(low: Array, high: Array) -> Array:
    return estimates.mean(high) - estimates.mean(low)


def _mean_ratio(own: Array, other: Array) -> Array:
    return estimates.mean(own) / estimates.mean(other)


def _median(values: Array) -> Array:
    median: Array = np.median(values, axis=-1)
    return median


def _regret(utilities: Array) -> Array:
    """[..., prompts, 1 + corners], the user's own weights first."""
    means = estimates.mean(np.swapaxes(utilities, -1, -2))
    regret: Array = means.max(axis=-1) - means[..., 0]
    return regret


def _complement(estimate: Estimate) -> Estimate:
    return Estimate(1 - estimate.value, 1 - estimate.high, 1 - estimate.low)
