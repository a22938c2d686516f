"""The cells of the benchmark: one method, for one user, at one setting."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Method = Literal[
    "base", "prompted", "system", "pad", "pad_prompted", "random", "persrm", "soup", "vector", "best_of_4", "best_of_8"
]
Penalties = tuple[tuple[str, float], ...]  # options of GenerationConfig against repetition, name and value
BETA, TOP_K = 1.15, 10  # fixed on questions of the training list, before these were asked; the paper has 1 and 10
PENALTIES: Penalties = (("frequency_penalty", 0.9),)  # of all methods, the base among them; fixed in the same way
TEMPERATURE = 0.7  # of sampled replies
ABOUT_ENDING = ("concise",)  # these users are offered the end of the turn at every step
WIDE_TOP_K = 1024  # all that the bundle allows
BASE, RANDOM = "", "random"  # in place of a PersRM's name: none, and the random reward
LABELS: dict[Method, str] = {
    "base": "base",
    "prompted": "base, prompted",
    "system": "base, system prompt",
    "pad": "PAD",
    "pad_prompted": "PAD, base prompted",
    "random": "PAD, random reward",
    "persrm": "PersRM alone",
    "soup": "soup of LoRAs",
    "vector": "activation vector",
    "best_of_4": "best of 4 by phi",
    "best_of_8": "best of 8 by phi",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is generated together: one method's replies to all questions.

    Attributes:
        method: base (the model alone), prompted (the base with the preference in its prompt, in the paper's template),
            system (the base with the preference as system message), pad (by weights), pad_prompted (by weights, the
            base and the PersRM reading the preference in their prompt too), random (pad with a random reward of equal
            scale, another one for each question), persrm (the PersRM alone: pad over all candidates that the bundle
            allows, which for a weight of +1 on one feature and beta 1 is exactly z_persrm); and the rivals of
            `benchmarks.quality.rivals`, for which beta is the strength of a soup or vector.
        persrm: name of the PersRM that is asked; BASE or RANDOM where none is.
        weights: what the user wants, feature and weight.
        text: the same in words, for the methods that read words.
        beta, top_k, max_new_tokens: see `GenerationConfig`.
        sample: 0 is greedy; from 1 on, the number of a sample at `TEMPERATURE`.
        penalties: what it has against repetition.
    """

    method: Method
    persrm: str = BASE
    weights: tuple[tuple[str, float], ...] = ()
    text: str | None = None
    beta: float = BETA
    top_k: int = TOP_K
    max_new_tokens: int
    sample: int = 0
    penalties: Penalties = PENALTIES

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
        if self.persrm not in (BASE, RANDOM):
            parts.insert(1, self.persrm)
        if self.text:
            parts.append(hashlib.sha256(self.text.encode()).hexdigest()[:6])
        parts += [f"b{self.beta:g}", f"k{self.top_k}"] if self.persrm else []
        parts += [f"t{self.max_new_tokens}", *([f"s{self.sample}"] if self.sample else [])]
        return "_".join([*parts, *(f"{name}{value:g}" for name, value in self.penalties)])
