"""Replies that a bundle wrote for unlike people: what questions are made of, for any number of people."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from pad_rt.config import ConfigLike, GenerationConfig, make_config
from pad_rt.generator import Generator
from pad_rt.preference import Preference
from pad_rt.result import GenerationResult
from pad_rt.taste.features import taste_features
from pad_rt.text.prompt import Prompt
from pad_runtime.errors import OptionError

NUM_REPLIES = 8
USUAL = GenerationConfig(max_new_tokens=60, frequency_penalty=0.9)  # short to read, and seldom with a loop


def usual_prompts() -> list[str]:
    """What people are asked about, unless they give prompts of their own."""
    return files("pad_rt.taste").joinpath("prompts.txt").read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True)
class PooledReply:
    """A reply that was written.

    Attributes:
        cut: whether it is unfinished.
        phi: of each feature, summed over its tokens, the end of the turn among them if it is finished.
    """

    text: str
    cut: bool
    phi: tuple[float, ...]


@dataclass(frozen=True)
class PooledPrompt:
    """A prompt and its replies, no two alike."""

    prompt: Prompt
    replies: tuple[PooledReply, ...]

    def pairs(self) -> Iterator[tuple[PooledReply, PooledReply]]:
        """Every two replies once."""
        return itertools.combinations(self.replies, 2)


@dataclass(frozen=True)
class ReplyPool:
    """Prompts with replies; two pools of the same features may be added.

    Attributes:
        features: of the bundle's PersRMs.
    """

    features: tuple[str, ...]
    prompts: tuple[PooledPrompt, ...]

    @classmethod
    def write(
        cls,
        generator: Generator,
        prompts: Sequence[Prompt],
        *,
        num_replies: int = NUM_REPLIES,
        config: ConfigLike = None,
    ) -> ReplyPool:
        """Write replies to each prompt for people whose wishes have nothing in common, and for their opposites.

        The people depend on the prompt alone, so the same prompt gives the same replies.

        Args:
            num_replies: for each prompt, at least 2.
            config: of the replies; None takes at most 60 tokens and a frequency penalty.

        Raises:
            TasteError: the bundle has no features.
            OptionError: fewer than 2 replies.
            PromptError: a prompt that cannot be generated from.
        """
        features = taste_features(generator.manifest)
        if num_replies < 2:
            raise OptionError(f"num_replies {num_replies}", expected="at least 2")
        config = USUAL if config is None else make_config(config)
        asked = [
            (prompt, dict(zip(features, person, strict=True)))
            for prompt in prompts
            for person in _unlike_people(prompt, len(features), num_replies)
        ]
        results = generator.generate_batch(
            [prompt for prompt, _ in asked],
            preferences=[Preference(weights=weights) for _, weights in asked],
            configs=[config] * len(asked),
        )
        written: list[dict[str, GenerationResult]] = [{} for _ in prompts]
        for at, result in enumerate(results):
            if result.token_ids:
                written[at // num_replies].setdefault(result.text, result)
        replies = [_pooled(generator, prompt, own.values()) for prompt, own in zip(prompts, written, strict=True)]
        return cls(features, tuple(map(PooledPrompt, prompts, replies)))

    def __add__(self, other: ReplyPool) -> ReplyPool:
        if self.features != other.features:
            raise OptionError(f"pools of the features {self.features} and {other.features}", expected="the same")
        return ReplyPool(self.features, self.prompts + other.prompts)


def _pooled(generator: Generator, prompt: Prompt, results: Collection[GenerationResult]) -> tuple[PooledReply, ...]:
    """Replies to one prompt with their phi, those that ended before those that were cut."""
    replies: list[PooledReply] = []
    for cut in (False, True):
        own = [result for result in results if (result.finish_reason == "length") == cut]
        scores = generator.score_batch([prompt] * len(own), [result.token_ids for result in own], ended=not cut)
        replies += [
            PooledReply(result.text, cut, tuple(score.features.values()))
            for result, score in zip(own, scores, strict=True)
        ]
    return tuple(replies)


def _unlike_people(prompt: Prompt, num_features: int, number: int) -> list[list[float]]:
    """Feature weights of length 1: orthogonal to each other, as far as there are so many, and their opposites."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, default=repr)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))
    people: list[list[float]] = []
    while len(people) < number:
        basis, _ = np.linalg.qr(rng.standard_normal((num_features, num_features)))
        people += [[sign * value for value in row] for row in basis.tolist() for sign in (1.0, -1.0)]
    return people[:number]
