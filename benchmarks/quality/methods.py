"""The cells of the benchmark: one method, for one user, at one setting."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.quality.traits import Trait

Method = Literal["base", "prompted", "system", "pad", "pad_words", "pad_prompted", "random", "persrm"]
Penalties = tuple[tuple[str, float], ...]  # options of GenerationConfig against repetition, name and value
BETA, TOP_K = 1.15, 10  # fixed on 60 questions of the training list, before these were asked; the paper has 1 and 10
ABOUT_ENDING = ("concise",)  # these users are offered the end of the turn at every step
WIDE_TOP_K = 1024  # all that the bundle allows
BETAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
TOP_KS = (1, 5, 10, 20, 40)
SLIDER = (-1.0, -0.5, 0.0, 0.5, 1.0)
LABELS: dict[Method, str] = {
    "base": "base",
    "prompted": "base, prompted",
    "system": "base, system prompt",
    "pad": "PAD",
    "pad_words": "PAD, in words",
    "pad_prompted": "PAD, base prompted",
    "random": "PAD, random reward",
    "persrm": "PersRM alone",
}
MAIN: tuple[Method, ...] = ("prompted", "system", "pad", "pad_prompted", "random", "persrm")
IN_WORDS: tuple[Method, ...] = ("pad_words",)
WORDED: tuple[tuple[Method, bool], ...] = (  # method, and whether its wording was seen in training
    ("prompted", True), ("prompted", False), ("system", True), ("pad", True), ("pad_words", True), ("pad_words", False),
)  # fmt: skip
_HALF, _THIRD = math.sqrt(1 / 2), math.sqrt(1 / 3)
MIXTURES: tuple[dict[str, float], ...] = (  # of unit length, so that only the direction is new; then three in full
    {"cheerful": _HALF, "simple": _HALF},
    {"cheerful": -_HALF, "simple": -_HALF},
    {"cheerful": _HALF, "concise": _HALF},
    {"cheerful": -_HALF, "concise": _HALF},
    {"simple": _HALF, "concise": _HALF},
    {"simple": -_HALF, "concise": -_HALF},
    {"cheerful": 0.95, "simple": math.sqrt(1 - 0.95**2)},
    {"cheerful": -math.sqrt(1 - 0.95**2), "concise": 0.95},
    {"cheerful": _THIRD, "simple": _THIRD, "concise": _THIRD},
    {"cheerful": -_THIRD, "simple": _THIRD, "concise": -_THIRD},
    {"cheerful": 1.0, "simple": 1.0},
    {"cheerful": 1.0, "concise": 1.0},
    {"cheerful": 1.0, "simple": 1.0, "concise": 1.0},
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is generated together: one method's replies to all prompts.

    Attributes:
        method: base (the model alone), prompted (the base with the preference in its prompt, in the PersRM's template),
            system (the base with the preference as system message), pad (by weights), pad_words (by words),
            pad_prompted (by weights, base and PersRM reading the preference in their prompt too), random (pad with a
            random reward of equal scale, another one for each prompt), persrm (the PersRM alone: pad over all
            candidates that the bundle allows, which for a weight of +1 on one feature and beta 1 is exactly z_persrm).
        weights: what the user wants, feature and weight.
        text: the same in words, for the methods that read words.
        beta, top_k, max_new_tokens: see `GenerationConfig`.
        penalties: what it has against repetition.
    """

    method: Method
    weights: tuple[tuple[str, float], ...] = ()
    text: str | None = None
    beta: float = BETA
    top_k: int = TOP_K
    max_new_tokens: int
    penalties: Penalties = ()

    @property
    def offer_end(self) -> bool:
        """See `GenerationConfig`; for a user whose wish is also about where a reply ends.

        The PersRM alone has all the candidates that the bundle allows, and no room for another.
        """
        return self.method != "persrm" and any(name in ABOUT_ENDING for name, _ in self.weights)

    @property
    def slug(self) -> str:
        """A file name."""
        parts: list[str] = [self.method, *(f"{name}{weight:+.3g}" for name, weight in self.weights)]
        if self.text:
            parts.append(hashlib.sha256(self.text.encode()).hexdigest()[:6])
        parts += [f"b{self.beta:g}", f"k{self.top_k}", f"t{self.max_new_tokens}"]
        return "_".join([*parts, *(f"{name}{value:g}" for name, value in self.penalties)])


def base_cell(max_new_tokens: int) -> Cell:
    """The model alone."""
    return Cell(method="base", max_new_tokens=max_new_tokens)


def pad_cell(weights: Mapping[str, float], traits: Mapping[str, Trait], **setting: float | int) -> Cell:
    """PAD by weights; where nothing is asked of it, the base: beta or weights of 0, one candidate."""
    wanted = tuple((name, weight) for name, weight in weights.items() if weight)
    cap = int(setting.pop("max_new_tokens", max(traits[name].max_new_tokens for name in weights)))
    if not wanted or setting.get("beta") == 0 or setting.get("top_k") == 1:
        return base_cell(cap)
    beta, top_k = float(setting.get("beta", BETA)), int(setting.get("top_k", TOP_K))
    return Cell(method="pad", weights=wanted, beta=beta, top_k=top_k, max_new_tokens=cap)


def trait_cell(method: Method, trait: Trait, weight: float, *, seen: bool = True) -> Cell:
    """A method for a user who wants one trait."""
    worded = method in ("prompted", "system", "pad_words", "pad_prompted")
    return Cell(
        method=method,
        weights=((trait.name, weight),),
        text=trait.text(weight, seen=seen) if worded else None,
        beta=1.0 if method == "persrm" else BETA,
        top_k=WIDE_TOP_K if method == "persrm" else TOP_K,
        max_new_tokens=trait.max_new_tokens,
    )


def users(traits: Mapping[str, Trait]) -> list[tuple[Trait, float]]:
    """Everyone who wants more or less of one trait."""
    return [(trait, weight) for trait in traits.values() for weight in (1.0, -1.0)]


def yardsticks(traits: Mapping[str, Trait]) -> list[Cell]:
    """What everything is held against: the base, plain and prompted."""
    caps = sorted({trait.max_new_tokens for trait in traits.values()})
    prompted = [trait_cell("prompted", trait, weight) for trait, weight in users(traits)]
    return [*map(base_cell, caps), *prompted]


@dataclass(frozen=True)
class Asked:
    """A cell that judges of one trait score, for a user of this weight.

    Attributes:
        setting: what the row of the record says of it.
    """

    cell: Cell
    trait: Trait
    weight: float
    setting: Mapping[str, Any]

    @property
    def base(self) -> Cell:
        """The model alone, with the same cap: what judges hold it against."""
        return base_cell(self.cell.max_new_tokens)

    @property
    def prompted(self) -> Cell:
        """The base that is told in its prompt, which it is held against, too."""
        return trait_cell("prompted", self.trait, self.weight)


def asked(part: str, traits: Mapping[str, Trait]) -> list[Asked]:
    """Of a part whose users want one trait: every method; PAD along beta (0: the base) and along k (1: the base);
    preferences in words, seen in training and not, beside weights.
    """
    rows = []
    for trait, weight in users(traits):
        wanted = {trait.name: weight}
        cells: list[tuple[Cell, dict[str, Any]]]
        if part == "main":
            cells = [(trait_cell(method, trait, weight), {}) for method in MAIN]
        elif part == "beta":
            cells = [(pad_cell(wanted, traits, beta=beta), {"beta": beta}) for beta in BETAS]
        elif part == "k":
            cells = [(pad_cell(wanted, traits, top_k=top_k), {"top_k": top_k}) for top_k in TOP_KS]
        else:
            worded = [(trait_cell(method, trait, weight, seen=seen), seen) for method, seen in WORDED]
            cells = [(cell, {"seen": seen, "text": cell.text}) for cell, seen in worded]
        rows += [Asked(cell, trait, weight, setting) for cell, setting in cells]
    return rows


def slider_cells(traits: Mapping[str, Trait]) -> list[Cell]:
    return [pad_cell({name: weight}, traits) for name in traits for weight in SLIDER]


def mixture_cells(traits: Mapping[str, Trait]) -> list[Cell]:
    """Every mixture, and the trained weights of its features at its own cap."""
    mixtures = [pad_cell(weights, traits) for weights in MIXTURES]
    return [*mixtures, *itertools.chain.from_iterable(corners(cell, traits) for cell in mixtures)]


def corners(cell: Cell, traits: Mapping[str, Trait]) -> list[Cell]:
    """The trained weights (one feature, +1 or -1) that lie on a mixture's side."""
    cap = cell.max_new_tokens
    return [pad_cell({name: math.copysign(1, weight)}, traits, max_new_tokens=cap) for name, weight in cell.weights]


PARTS = ("main", "beta", "k", "slider", "mixtures", "words")


def part_cells(part: str, traits: Mapping[str, Trait]) -> list[Cell]:
    """All cells that a part needs, each once."""
    if part == "slider":
        cells = slider_cells(traits)
    elif part == "mixtures":
        cells = mixture_cells(traits)
    else:
        cells = [one.cell for one in asked(part, traits)]
    return list(dict.fromkeys([*yardsticks(traits), *cells]))
