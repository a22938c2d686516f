"""The traits a user may want more or less of, how that is said in words, and how long a reply may be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.records import ROOT

WORDINGS = ROOT / "demo" / "training" / "features.json"
MAX_NEW_TOKENS = {"cheerful": 64, "simple": 64, "concise": 96}  # concise: where the base stops must be in sight
UNSEEN = {  # by this benchmark alone: `load_traits` refuses a wording that the PersRM was trained with
    "cheerful": ("Radiate delight and look on the sunny side.", "Find fault with everything and moan about it."),
    "simple": ("Write so that a ten-year-old can follow.", "Write the way learned scholars address each other."),
    "concise": ("Skip the padding and get it said quickly.", "Go into great depth and leave nothing out."),
}


@dataclass(frozen=True)
class Trait:
    """One feature of the PersRM.

    Attributes:
        name: the feature's name in the bundle.
        seen: a wording for more of it and one for less, both from the PersRM's training.
        unseen: the same, never used in training.
        overlap: of each unseen wording, the largest share of its words that one training wording has too.
        max_new_tokens: cap on its replies.
    """

    name: str
    seen: tuple[str, str]
    unseen: tuple[str, str]
    overlap: tuple[float, float]
    max_new_tokens: int

    def text(self, weight: float, *, seen: bool = True) -> str:
        """The wording for a weight's direction."""
        return (self.seen if seen else self.unseen)[0 if weight > 0 else 1]


def load_traits(path: Path) -> dict[str, Trait]:
    """Traits by name; the training wordings come from the features.json that the PersRM was trained with.

    Raises:
        SystemExit: the file is missing or lacks a trait, or a wording here was used in training.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing: it lists the wordings of the PersRM's training")
    wordings = json.loads(path.read_text(encoding="utf-8"))
    traits = {}
    for name, unseen in UNSEEN.items():
        if not wordings.get(name, {}).get("more") or not wordings[name].get("less"):
            raise SystemExit(f"{path} has no wordings for {name}: expected 'more' and 'less'")
        more, less = wordings[name]["more"], wordings[name]["less"]
        trained = [_words(text) for text in (*more, *less)]
        for text in unseen:
            if _words(text) in trained:
                raise SystemExit(f"{text!r} was used in training: choose another in {Path(__file__).name}")
        overlap = tuple(max(len(_words(text) & words) / len(_words(text)) for words in trained) for text in unseen)
        traits[name] = Trait(
            name, (_sentence(more), _sentence(less)), unseen, (overlap[0], overlap[1]), MAX_NEW_TOKENS[name]
        )
    return traits


def _sentence(wordings: list[str]) -> str:
    """The first wording that is a sentence, which a base understands best, or else the first."""
    return next((text for text in wordings if text.endswith(".")), wordings[0])


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
