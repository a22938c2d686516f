"""The object "pad" of a body: how a person wants replies to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pad_rt.api.fields import Fields
from pad_rt.preference import Preference

_OPTIONS = ("beta", "top_k", "offer_end")  # of a GenerationConfig


@dataclass(frozen=True)
class Guidance:
    """What the object gives; None is what it leaves open.

    Attributes:
        weights: feature weights, by name.
        preference: the preference in words.
        beta: strength of the reward.
        top_k: candidates that the base proposes, guided or not.
        offer_end: whether the end of the turn is a candidate at every step.
        explain: whether the reply says, token by token, what the reward did.
    """

    weights: Mapping[str, float] | None = None
    preference: str | None = None
    beta: float | None = None
    top_k: int | None = None
    offer_end: bool | None = None
    explain: bool | None = None

    @classmethod
    def read(cls, value: object, path: str = "pad") -> Guidance:
        """Check the types of an object's fields; their ranges are checked with the rest of a request.

        Raises:
            ApiError: a field that is unknown, or of another type.
        """
        given = Fields(value, path)
        weights = given.mapping("weights")
        for name in weights or ():
            Fields(weights, given.path("weights")).number(name)
        guidance = cls(
            weights=weights,
            preference=given.text("preference"),
            beta=given.number("beta"),
            top_k=given.integer("top_k", least=1),
            offer_end=given.flag("offer_end"),
            explain=given.flag("explain"),
        )
        given.finish()
        return guidance

    def over(self, other: Guidance) -> Guidance:
        """These fields, and the other's where these are left open."""
        return Guidance(**(other.as_dict() | self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """The object again: the fields that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    def wish(self) -> Preference | None:
        """The preference; None without weights and words.

        Raises:
            PreferenceError: words that are blank, or a weight that is not finite.
        """
        if not self.weights and self.preference is None:
            return None
        return Preference(self.preference, self.weights or {})

    @property
    def options(self) -> dict[str, Any]:
        """The options of a `GenerationConfig` that are given."""
        return {name: value for name, value in self.as_dict().items() if name in _OPTIONS}
