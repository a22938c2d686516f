"""The score of a reply: what each of its tokens is worth, and the sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenScore:
    """What one token of a reply is worth, behind the prompt and the tokens before it.

    Attributes:
        id: the token.
        text: what it adds to the reply; a special token's name; "" for a part of a character, which the character's
            last token adds.
        logprob: log p_base over the whole vocabulary.
        features: phi by feature, log p_PersRM - log p_reference, normalised over T: the token itself and the base's
            likeliest others.
        reward: sum_i w_i phi_i with the preference's weights; None without a preference.
    """

    id: int
    text: str
    logprob: float
    features: Mapping[str, float]
    reward: float | None = None


@dataclass(frozen=True)
class ReplyScore:
    """What a reply is worth. Sums are over its tokens, in nats.

    Attributes:
        per_token: one for each token of the reply.
    """

    per_token: tuple[TokenScore, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that were scored, the end of the turn among them if the reply ended."""
        return tuple(token.id for token in self.per_token)

    @property
    def logprob(self) -> float:
        """log p_base of the reply behind its prompt."""
        return math.fsum(token.logprob for token in self.per_token)

    @property
    def features(self) -> dict[str, float]:
        """phi of the reply by feature."""
        names = self.per_token[0].features
        return {name: math.fsum(token.features[name] for token in self.per_token) for name in names}

    @property
    def reward(self) -> float | None:
        """R = sum_i w_i phi_i of the reply; None without a preference."""
        rewards = [token.reward for token in self.per_token if token.reward is not None]
        return math.fsum(rewards) if rewards else None
