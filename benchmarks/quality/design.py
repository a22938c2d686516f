"""Which cells each part of the benchmark has, and what each is held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.quality.methods import BETA, PENALTIES, RANDOM, WIDE_TOP_K, Cell, Method, Penalties
from benchmarks.quality.traits import Trait

MAIN: tuple[Method, ...] = ("prompted", "pad", "random")
OTHERS: tuple[Method, ...] = ("system", "pad_prompted", "persrm")
SAMPLED: tuple[Method, ...] = ("base", "prompted", "pad")
BETAS = (0.0, 0.5, 0.8, 1.15, 1.5, 2.0)
TOP_KS = (1, 5, 10, 20, 40)
SLIDER = (-1.0, -0.5, 0.0, 0.5, 1.0)
_HALF = math.sqrt(1 / 2)  # of unit length, so that only the direction is new
MIXTURES: tuple[dict[str, float], ...] = (  # each feature in three; all directions but "detailed", as the base is
    {"cheerful": _HALF, "concise": _HALF},
    {"cheerful": _HALF, "simple": _HALF},
    {"cheerful": -_HALF, "hedged": -_HALF},
    {"simple": _HALF, "lists": _HALF},
    {"simple": -_HALF, "formal": _HALF},
    {"concise": _HALF, "formal": -_HALF},
    {"concise": _HALF, "hedged": _HALF},
    {"warm": _HALF, "lists": _HALF},
    {"warm": _HALF, "enthusiastic": _HALF},
    {"warm": -_HALF, "formal": _HALF},
    {"enthusiastic": -_HALF, "lists": -_HALF},
    {"enthusiastic": _HALF, "hedged": -_HALF},
)
SLIDERS = (("cheerful", "simple"), ("warm", "formal"))  # two at a time, for the front
TRIED: tuple[Penalties, ...] = (
    (),
    (("repetition_penalty", 1.05),),
    (("repetition_penalty", 1.1),),
    (("repetition_penalty", 1.2),),
    (("frequency_penalty", 0.3),),
    (("frequency_penalty", 0.6),),
    PENALTIES,
    (("presence_penalty", 0.5),),
    (("no_repeat_ngram", 4),),
)
ROWS = ("main", "sampled", "others", "beta", "k", "penalties", "unpenalized")  # parts whose users want one trait
PARTS = (*ROWS, "mixtures", "slider", "front")


@dataclass(frozen=True)
class Asked:
    """Replies to a user who wants one trait.

    Attributes:
        cells: one for each PersRM that was trained.
        base, prompted: what judges hold them against, decoded in the same way: the model alone, and told in its prompt.
            Sampled replies of the base are held against its greedy ones.
        setting: what the row of the record says of it.
    """

    cells: tuple[Cell, ...]
    trait: Trait
    weight: float
    base: Cell
    prompted: Cell
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Design:
    """All that is asked of one base.

    Attributes:
        traits: by name.
        persrms: names of the PersRMs of several training seeds; the first is the one that all parts are about.
        beta: strength of the reward.
        chat: whether the base has a chat template, and so a place for a system message.
    """

    traits: Mapping[str, Trait]
    persrms: tuple[str, ...]
    beta: float = BETA
    chat: bool = True

    @property
    def users(self) -> list[tuple[Trait, float]]:
        """Everyone who wants more or less of one trait."""
        return [(trait, weight) for trait in self.traits.values() for weight in (1.0, -1.0)]

    @property
    def caps(self) -> list[int]:
        """The caps on replies, each once."""
        return sorted({trait.max_new_tokens for trait in self.traits.values()})

    @property
    def mixtures(self) -> list[dict[str, float]]:
        return [weights for weights in MIXTURES if self.traits.keys() >= weights.keys()]

    @property
    def sliders(self) -> list[tuple[str, str]]:
        return [names for names in SLIDERS if self.traits.keys() >= set(names)]

    # -- cells --------------------------------------------------------------------------------------------------------

    def base(self, max_new_tokens: int, sample: int = 0) -> Cell:
        """The model alone."""
        return Cell(method="base", max_new_tokens=max_new_tokens, sample=sample)

    def cell(self, method: Method, weights: Mapping[str, float], *, sample: int = 0, persrm: str | None = None) -> Cell:
        """A method for a user of these weights; the base where they are all 0."""
        wanted = tuple((name, weight) for name, weight in weights.items() if weight)
        cap = max(self.traits[name].max_new_tokens for name in weights)
        if method == "base" or not wanted:
            return self.base(cap, sample)
        cell = Cell(method=method, weights=wanted, beta=self.beta, max_new_tokens=cap, sample=sample)
        if method in ("prompted", "system", "pad_prompted"):
            cell = replace(cell, text=" ".join(self.traits[name].text(weight) for name, weight in wanted))
        if method in ("prompted", "system"):
            return replace(cell, beta=BETA)  # of no effect: one cell, whatever the design's
        if method == "random":
            return replace(cell, persrm=RANDOM)
        if method == "persrm":
            cell = replace(cell, beta=1.0, top_k=WIDE_TOP_K)
        return replace(cell, persrm=persrm or self.persrms[0])

    def pad(self, weights: Mapping[str, float], **changes: Any) -> Cell:
        """PAD at another setting; where nothing is asked of it (beta 0, one candidate), the base."""
        cell = self.cell("pad", weights)
        if changes.get("beta") == 0 or changes.get("top_k") == 1:
            return self.base(cell.max_new_tokens)
        return cell if cell.method == "base" else replace(cell, **changes)

    # -- parts --------------------------------------------------------------------------------------------------------

    def asked(self, part: str) -> list[Asked]:
        """The rows of one of `ROWS`."""
        rows = []
        for trait, weight in self.users:
            for cells, setting in self._settings(part, {trait.name: weight}):
                sample = 0 if cells[0].method == "base" else cells[0].sample  # a sampled base beside the greedy one
                base = self.base(trait.max_new_tokens, sample)
                prompted = self.cell("prompted", {trait.name: weight}, sample=sample)
                if part == "unpenalized":
                    base, prompted = replace(base, penalties=()), replace(prompted, penalties=())
                rows.append(Asked(cells, trait, weight, base, prompted, setting))
        return rows

    def _settings(self, part: str, weights: dict[str, float]) -> list[tuple[tuple[Cell, ...], dict[str, Any]]]:
        """Cells of one user and what tells them from the part's others."""
        if part == "main":
            return [(self._seeds(method, weights), {}) for method in MAIN]
        if part == "sampled":
            return [((self.cell(method, weights, sample=1),), {"sampled": True}) for method in SAMPLED]
        if part == "others":
            return [((self.cell(method, weights),), {}) for method in OTHERS if self.chat or method != "system"]
        if part == "beta":
            return [((self.pad(weights, beta=beta),), {"beta": beta}) for beta in BETAS]
        if part == "k":
            return [((self.pad(weights, top_k=top_k),), {"top_k": top_k}) for top_k in TOP_KS]
        if part == "penalties":
            return [((self.pad(weights, penalties=tried),), {"penalties": dict(tried)}) for tried in TRIED]
        return [((self.pad(weights, penalties=()),), {})]

    def _seeds(self, method: Method, weights: dict[str, float]) -> tuple[Cell, ...]:
        if method != "pad":
            return (self.cell(method, weights),)
        return tuple(self.cell(method, weights, persrm=persrm) for persrm in self.persrms)

    def cells(self, part: str) -> list[Cell]:
        """All cells that a part needs, each once."""
        cells: list[Cell] = []
        if part in ROWS:
            for one in self.asked(part):
                cells += [*one.cells, one.base, one.prompted, self.base(one.base.max_new_tokens)]
        elif part == "mixtures":
            for weights in self.mixtures:
                cells += [self.cell("pad", weights), self.cell("base", weights)]
        elif part == "slider":
            cells += [self.pad({name: weight}) for name in self.traits for weight in SLIDER]
        else:
            for names in self.sliders:
                cells += [self.pad(weights) for weights in grid(names, SLIDER)]
                cells += [self.cell(method, weights) for method in ("prompted", "random") for weights in ends(names)]
        return list(dict.fromkeys(cells))


def grid(names: Sequence[str], steps: Sequence[float]) -> list[dict[str, float]]:
    """Every combination of the sliders' steps."""
    return [dict(zip(names, weights, strict=True)) for weights in itertools.product(steps, repeat=len(names))]


def ends(names: Sequence[str]) -> list[dict[str, float]]:
    """The sliders at an end or in the middle, but not all in the middle."""
    return [weights for weights in grid(names, (-1.0, 0.0, 1.0)) if any(weights.values())]
