"""What is believed of a person before the first answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pad_runtime.errors import OptionError

_LEAST_SPREAD = 0.3  # a feature that all known people weigh alike may matter to the next one


@dataclass(frozen=True)
class Prior:
    """A population: the mean and the standard deviation of people's feature weights, which are of length 1 a person.

    Args:
        mean: by feature; 0 where it says nothing.
        spread: by feature; a d-th of the square of the length where it says nothing, d features.

    Raises:
        OptionError: a value that is not finite, or a spread that is not above 0.
    """

    mean: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (*self.mean.items(), *self.spread.items()):
            if not math.isfinite(value):
                raise OptionError(f"the prior of {name!r} is {value!r}", expected="a finite number")
        for name, value in self.spread.items():
            if value <= 0:
                raise OptionError(f"the prior's spread of {name!r} is {value!r}", expected="a number above 0")

    @classmethod
    def of_people(cls, people: Sequence[Mapping[str, float]]) -> Prior:
        """Of the feature weights of people who are known; their length does not count.

        Raises:
            OptionError: fewer than two people.
        """
        lengths = [math.sqrt(sum(weight**2 for weight in person.values())) for person in people]
        known = [(person, length) for person, length in zip(people, lengths, strict=True) if length > 0]
        if len(known) < 2:
            raise OptionError(f"a prior of {len(known)} people", expected="two or more who want something")
        names = list(dict.fromkeys(name for person, _ in known for name in person))
        rows = np.array([[person.get(name, 0.0) / length for name in names] for person, length in known])
        means, spreads = rows.mean(axis=0), rows.std(axis=0, ddof=1).clip(min=_LEAST_SPREAD)
        return cls(
            dict(zip(names, means.tolist(), strict=True)),
            dict(zip(names, spreads.tolist(), strict=True)),
        )

    def arrays(self, features: Sequence[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Means and standard deviations of these features [d], [d].

        Raises:
            OptionError: it speaks of a feature that is not among them.
        """
        for name in {**self.mean, **self.spread}:
            if name not in features:
                raise OptionError(f"a prior of '{name}'", expected=f"features of the bundle: {', '.join(features)}")
        usual = math.sqrt(1 / len(features))
        return (
            np.array([self.mean.get(name, 0.0) for name in features], np.float64),
            np.array([self.spread.get(name, usual) for name in features], np.float64),
        )
