"""A user's preference: words for the PersRM's prompt, weights for its features, or both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TypeAlias

from pad_runtime.errors import OptionError, PreferenceError


@dataclass(frozen=True)
class Preference:
    """A preference. Its reward is R = sum_i weights[i] * phi_i; the PersRM computes phi with the text in its prompt.

    Args:
        text: the preference in words; None for a preference by weights alone.
        weights: w_i by feature name; empty takes the PersRM's default weights.

    Raises:
        PreferenceError: text and weights are both missing, the text is blank, or a weight is not a finite number.
    """

    text: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise PreferenceError(f"preference text of type {type(self.text).__name__}", expected="a string")
        if self.text is not None and not self.text.strip():
            raise PreferenceError("an empty preference text", expected="words", hint="leave it out to guide by weights")
        if not isinstance(self.weights, Mapping):
            raise PreferenceError(
                f"preference weights of type {type(self.weights).__name__}",
                expected='a mapping such as {"cheerful": 1.0}',
            )
        weights = {_check_name(name): _check_weight(weight, of=repr(name)) for name, weight in self.weights.items()}
        if self.text is None and not weights:
            raise PreferenceError(
                "a preference without text and weights", expected="at least one", hint="use None for no preference"
            )
        object.__setattr__(self, "weights", weights)


PreferenceLike: TypeAlias = str | Preference | Sequence[tuple[str | Preference, float]] | None
"""What a caller may give: None, text, a `Preference`, or several preferences as (preference, weight) pairs."""


def normalize_preferences(preference: PreferenceLike) -> tuple[tuple[Preference, float], ...]:
    """All forms of a preference as (preference, weight) pairs.

    Args:
        preference: None (no guidance), text, a `Preference`, or a list of (text or `Preference`, weight) pairs.

    Returns:
        () for None; one pair of weight 1.0 for a single preference; else the pairs in their order.

    Raises:
        PreferenceError: any other value, an empty list, or a weight that is not a finite number.
    """
    if preference is None:
        return ()
    if isinstance(preference, str | Preference):
        return ((_make_preference(preference), 1.0),)
    if not isinstance(preference, list | tuple):
        raise PreferenceError(
            f"a preference of type {type(preference).__name__}",
            expected="None, a string, a Preference, or a list of (preference, weight) pairs",
        )
    if not preference:
        raise PreferenceError("an empty list of preferences", hint="use None for no preference")
    pairs = []
    for index, pair in enumerate(preference):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str | Preference):
            raise PreferenceError(
                f"item {index} of the preferences is not a (preference, weight) pair",
                expected='a list such as [("cheerful", 1.0), ("concise", 0.5)]',
                hint="give every preference its weight",
            )
        pairs.append((_make_preference(pair[0]), _check_weight(pair[1], of=f"item {index}")))
    return tuple(pairs)


def parse_weight(argument: str) -> tuple[str, float]:
    """Parse NAME=W from the command line; the last "=" separates, so that a name may contain "=".

    Raises:
        OptionError: no name, no "=", or W is not a finite number.
    """
    name, _, number = argument.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name.strip() or not math.isfinite(weight):
        raise OptionError(
            f"--weight {argument!r}", expected="NAME=W with a finite number W", hint="for example cheerful=0.5"
        )
    return name.strip(), weight


def _make_preference(preference: str | Preference) -> Preference:
    return Preference(text=preference) if isinstance(preference, str) else preference


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise PreferenceError(f"a feature named {name!r}", expected="a name of the bundle's features")
    return name


def _check_weight(weight: object, *, of: str) -> float:
    if isinstance(weight, Real) and not isinstance(weight, bool):
        try:
            number = float(weight)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise PreferenceError(f"the weight of {of} is {weight!r}", expected="a finite number")
