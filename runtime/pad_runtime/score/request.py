"""What is to be scored, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RewardPrompt:
    """A PersRM whose phi is asked for, and what it reads before the reply.

    Attributes:
        persrm: index into the manifest's PersRMs.
        prompt: token ids.
    """

    persrm: int
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class ScoreRequest:
    """One reply to be scored.

    Attributes:
        prompt: token ids that the base reads before the reply.
        reply: token ids, the end of the turn among them if it ended there.
        rewards: the PersRMs whose phi is asked for; none: the base's log-probabilities alone.
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    rewards: tuple[RewardPrompt, ...] = ()

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest of its prompts."""
        return max(len(self.prompt), *(len(reward.prompt) for reward in self.rewards), 0)


@dataclass(frozen=True)
class ReplyScores:
    """What the tokens of one reply are worth.

    Attributes:
        log_probs: log p_base of each token, over the whole vocabulary: [n] float32.
        phi: by reward of the request, log p_i - log p_reference of each token and feature, both normalised over T, the
            base's top k there with the token itself: [n, features] float32 each. A PersRM without a feature head has
            one feature, its own logits.
    """

    log_probs: Array
    phi: tuple[Array, ...]
