"""A base with three PersRMs of it, and preferences as a user writes them and as rows that torch can follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_rt import GenerationConfig, Preference
from tests.support import tiny_bundles
from tests.support.torch_oracle import TorchModel

PROMPTS = ("How do I boil an egg?", "the cook", "東京 naïve", "a")
TEMPLATE = "[{p}] {x}"  # of the tiny PersRMs; one keeps the paper's
BETA, TOP_K, NUM_TOKENS = 1.25, 6, 24


@dataclass(frozen=True)
class Models:
    """A base and three PersRMs of it: without a head, with the official one, and with three features."""

    folder: Path
    base: TorchModel
    persrms: dict[str, TorchModel]

    def bundle(self, reference: str, **options: Any) -> Path:
        output = self.folder / "-".join(["bundle", reference, *map(str, options.values())])
        if not output.exists():
            persrms = [self.folder / name for name in self.persrms]
            tiny_bundles.export(output, self.folder / "base", persrms, reference=reference, **options)
        return output


# A preference as a user writes it; then as (PersRM, text or None, weights, scale), in the order of the reward rows.
Plan = list[tuple[str, str | None, tuple[float, ...], float]]
PREFERENCES: dict[str, tuple[Any, Plan]] = {
    "words": ("be kind", [("plain", "be kind", (1.0,), 1.0)]),
    "official head": (
        Preference(text="be kind", weights={"official": 1.0}),
        [("official", "be kind", (1.0,), 1.0)],
    ),
    "weights, one negative and one zero": (
        Preference(text="egg", weights={"kind": 1.5, "brief": -0.75, "odd": 0.0}),
        [("many", "egg", (1.5, -0.75, 0.0), 1.0)],
    ),
    "a feature left out": (
        Preference(text="egg", weights={"odd": 0.8}),
        [("many", "egg", (0.0, 0.0, 0.8), 1.0)],
    ),
    "weights that cancel": (
        Preference(text="egg", weights={"kind": 1.0, "brief": -1.0}),
        [("many", "egg", (1.0, -1.0, 0.0), 1.0)],
    ),
    "without words": (
        Preference(weights={"kind": 0.6, "odd": 0.9}),
        [("many", None, (0.6, 0.0, 0.9), 1.0)],
    ),
    "several PersRMs in one": (
        Preference(text="egg", weights={"odd": 0.5, "plain": 0.7, "official": -0.4}),
        [
            ("plain", "egg", (0.7,), 1.0),
            ("official", "egg", (-0.4,), 1.0),
            ("many", "egg", (0.0, 0.0, 0.5), 1.0),
        ],
    ),
    "several preferences with scales": (
        [
            (Preference(text="be kind", weights={"kind": 1.0, "brief": 0.5}), 0.8),
            ("cook", 0.6),
            (Preference(text="egg", weights={"official": 1.0}), -0.5),
            ("boil", 0.0),
        ],
        [
            ("many", "be kind", (1.0, 0.5, 0.0), 0.8),
            ("plain", "cook", (1.0,), 0.6),
            ("official", "egg", (1.0,), -0.5),
            ("plain", "boil", (1.0,), 0.0),
        ],
    ),
    "none": (None, []),
}


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**{"beta": BETA, "top_k": TOP_K, "max_new_tokens": NUM_TOKENS, **options})
