"""Requests of all kinds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from pad_rt import GenerationConfig, Preference
from pad_rt.preference import PreferenceLike
from pad_runtime.bundle.manifest import Manifest

_WORDS = (
    "sea", "storm", "bread", "winter", "garden", "letter", "music", "bridge", "market", "star", "horse", "clock",
    "river", "paper", "lamp", "stone",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """One request, and whether it is cancelled after so many events."""

    kind: str
    prompt: str
    preference: PreferenceLike
    config: GenerationConfig
    cancel_after: int | None


def make_wish(chance: random.Random, manifest: Manifest) -> Wish:
    """Any kind of request that the bundle takes."""
    features = [feature for persrm in manifest.persrms for feature in persrm.features]
    kinds = ["plain", "weights", "weights", "mixture"]
    kinds += ["words"] * any(persrm.takes_text for persrm in manifest.persrms)
    kind = chance.choice(kinds)
    one, other = (Preference(weights={chance.choice(features): round(chance.uniform(-1, 1.5), 2)}) for _ in range(2))
    preferences: dict[str, PreferenceLike] = {
        "plain": None,
        "weights": one,
        "mixture": [(one, 0.7), (other, 0.4)],
        "words": f"Speak of the {chance.choice(_WORDS)} and be brief.",
    }
    options: dict[str, Any] = {"max_new_tokens": chance.choice((1, 8, 24, 60)), "top_k": chance.choice((5, 10, 20))}
    if chance.random() < 0.4:
        options |= {"temperature": 0.8, "top_p": chance.choice((1.0, 0.9)), "seed": chance.randrange(1000)}
    if chance.random() < 0.3:
        options |= {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "no_repeat_ngram": chance.choice((0, 3))}
    if chance.random() < 0.2:
        options |= {"stop": [chance.choice(_WORDS)], "offer_end": chance.random() < 0.5}
    num_words = chance.choice((5, 5, 20, 20, 60, 400))
    return Wish(
        kind,
        " ".join(chance.choices(_WORDS, k=num_words)),
        preferences[kind],
        GenerationConfig(**options),
        chance.randrange(20) if chance.random() < 0.1 else None,
    )
