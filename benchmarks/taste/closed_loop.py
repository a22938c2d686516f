"""Replies to unseen questions with what was learned of a person, judged by that person's own utility."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.kept import kept
from benchmarks.quality.estimates import Array, outcomes
from benchmarks.quality.methods import BETA, PENALTIES, TOP_K
from benchmarks.quality.replies import JudgedReply
from benchmarks.taste.judged_pool import Instruments
from benchmarks.taste.person import Person
from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.text.prompt import Prompt

LEARNED, FULL, SLIDERS = "learned", "learned, at the sliders' strength", "sliders"
PAIRS, POPULATION = "pairs in the prompt", "population"
ARMS = (LEARNED, FULL, SLIDERS, PAIRS)  # of each person
_INTRODUCTION = "For each of these questions I liked the first reply better. Answer my question in the way that I like."


def config() -> GenerationConfig:
    """As fixed for the quality benchmark, on other questions."""
    options: dict[str, Any] = {"max_new_tokens": 64, "beta": BETA, "top_k": TOP_K, "offer_end": True, **dict(PENALTIES)}
    return GenerationConfig.from_mapping(options)


def prompted(pairs: Sequence[tuple[str, str, str]], question: str) -> Prompt:
    """The pairs, put into the base's prompt."""
    told = [f"Question: {asked}\nFirst: {better}\nSecond: {worse}" for asked, better, worse in pairs]
    return "\n\n".join([_INTRODUCTION, *told, f"My question: {question}"])


@dataclass(frozen=True)
class Arm:
    """A way to reply to one person.

    Attributes:
        name: of the file that its replies are kept in.
        weights: of the preference; None: the base alone.
        pairs: that are put into the base's prompt.
    """

    name: str
    weights: Mapping[str, float] | None = None
    pairs: tuple[tuple[str, str, str], ...] = ()

    def replies(self, folder: Path, mark: str, generator: Generator, questions: Sequence[str]) -> list[JudgedReply]:
        """To each question; kept as long as the arm is the same."""

        def generate() -> Any:
            preference = None if self.weights is None else Preference(weights=self.weights)
            prompts = [prompted(self.pairs, question) if self.pairs else question for question in questions]
            results = []
            for some in (prompts[:1], prompts[1:]):  # what the first one reads serves the others
                if some:
                    results += generator.generate_batch(some, preferences=[preference] * len(some), config=config())
            return [[result.text, result.finish_reason == "length"] for result in results]

        settings = json.loads(json.dumps([mark, list(questions), self.weights and dict(self.weights), self.pairs]))
        texts = kept(folder / f"{self.name}.json", settings, generate)
        return [JudgedReply(question, text, (), cut) for question, (text, cut) in zip(questions, texts, strict=True)]


def held_against(
    people: Sequence[Person],
    arms: Mapping[str, Sequence[Sequence[JudgedReply]]],
    base: Sequence[JudgedReply],
    instruments: Instruments,
) -> dict[str, dict[str, Array]]:
    """By arm, each person's wins over the base (a tie as half) and gain of utility, mean over the questions [people].

    Args:
        arms: replies to each person.
        base: its replies, to whomever.
    """
    plain = instruments(base)
    utilities = {
        name: [person.utility(instruments(own)) for person, own in zip(people, replies, strict=True)]
        for name, replies in arms.items()
    }
    usual = [person.utility(plain) for person in people]
    found = {}
    for name, own in utilities.items():
        found[name] = {
            "win": np.array([outcomes(one, other).mean() for one, other in zip(own, usual, strict=True)]),
            "gain": np.array([(one - other).mean() for one, other in zip(own, usual, strict=True)]),
        }
    if PAIRS in utilities:
        both = zip(utilities[LEARNED], utilities[PAIRS], strict=True)
        found[LEARNED]["win over pairs"] = np.array([outcomes(one, other).mean() for one, other in both])
    return found
