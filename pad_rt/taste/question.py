"""A question to a person: which of two replies is better?"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from pad_rt.taste.reply_pool import PooledReply
from pad_rt.text.prompt import Prompt

Answer = Literal["a", "b"]


@dataclass(frozen=True)
class Question:
    """Two replies to one prompt.

    Attributes:
        prompt: that they reply to.
        a, b: the replies.
        cut: whether a is unfinished, and b.
        difference: phi(a) - phi(b) of each feature, summed over the tokens, in the order of the taste's features.
        bits: what the answer is expected to tell about the person, at most 1; NaN where nobody was meant.
    """

    prompt: Prompt
    a: str
    b: str
    cut: tuple[bool, bool]
    difference: tuple[float, ...]
    bits: float = math.nan

    @classmethod
    def of(cls, prompt: Prompt, a: PooledReply, b: PooledReply, bits: float = math.nan) -> Question:
        """About two replies that were written to a prompt."""
        difference = tuple(one - other for one, other in zip(a.phi, b.phi, strict=True))
        return cls(prompt, a.text, b.text, (a.cut, b.cut), difference, bits)

    @property
    def id(self) -> str:
        """Tells it from other questions: a digest of the prompt and the replies."""
        told = json.dumps([self.prompt, self.a, self.b], default=repr)
        return hashlib.sha256(told.encode()).hexdigest()[:16]
