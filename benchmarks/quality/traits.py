"""The traits a user may want more or less of, how that is said in words, and how long a reply may be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.records import ROOT

WORDINGS = ROOT / "demo" / "training" / "features.json"
DIRECTIONS = {
    "cheerful": ("cheerful", "critical"),
    "simple": ("simple", "academic"),
    "concise": ("concise", "detailed"),
    "warm": ("warm", "distant"),
    "formal": ("formal", "casual"),
    "hedged": ("hedged", "sure"),
    "lists": ("lists", "prose"),
    "enthusiastic": ("enthusiastic", "calm"),
}
_LONGER = ("concise", "lists")  # where the base stops, and where a list ends, must be in sight
_CAP, _LONGER_CAP = 64, 96


@dataclass(frozen=True)
class Trait:
    """One feature of the PersRM, as users ask for it.

    Attributes:
        name: the feature's name in the bundle.
        directions: what more of it is called, and less.
        wordings: for more of it and for less, as the base is told.
        max_new_tokens: cap on its replies.
    """

    name: str
    directions: tuple[str, str]
    wordings: tuple[str, str]
    max_new_tokens: int

    def text(self, weight: float) -> str:
        """The wording for a weight's direction."""
        return self.wordings[0 if weight > 0 else 1]


def wanted(feature: str, weight: float) -> str:
    """What a user wants, in a word."""
    return DIRECTIONS[feature][0 if weight > 0 else 1]


def reply_cap(feature: str) -> int:
    """Tokens that a reply may have."""
    return _LONGER_CAP if feature in _LONGER else _CAP


def read_features(persrm: Path) -> list[str]:
    """The features of a PersRM that there are traits for.

    Raises:
        SystemExit: there is none.
    """
    path = persrm / "pad_persrm.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: the benchmark needs a PersRM with a feature head")
    features = json.loads(path.read_text(encoding="utf-8"))["features"]
    known = [name for name in DIRECTIONS if name in features]
    if not known:
        raise SystemExit(f"{path} has the features {', '.join(features)}; expected some of {', '.join(DIRECTIONS)}")
    return known


def load_traits(features: Sequence[str], path: Path = WORDINGS) -> dict[str, Trait]:
    """Traits by name; their wordings come from the features.json that the PersRM's pairs were made with.

    Raises:
        SystemExit: the file is missing or has no wordings for a feature.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing: it lists the wordings of the features")
    said = json.loads(path.read_text(encoding="utf-8"))
    traits = {}
    for name in features:
        if not said.get(name, {}).get("more") or not said[name].get("less"):
            raise SystemExit(f"{path} has no wordings for {name}: expected 'more' and 'less'")
        wordings = _sentence(said[name]["more"]), _sentence(said[name]["less"])
        traits[name] = Trait(name, DIRECTIONS[name], wordings, reply_cap(name))
    return traits


def _sentence(wordings: list[str]) -> str:
    """The first wording that is a sentence, which a base understands best, or else the first."""
    return next((text for text in wordings if text.endswith(".")), wordings[0])
