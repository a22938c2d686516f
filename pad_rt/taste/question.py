"""A question to a person: which of two replies is better?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        bits: what the answer is expected to tell about the person, at most 1.
    """

    prompt: Prompt
    a: str
    b: str
    cut: tuple[bool, bool]
    difference: tuple[float, ...]
    bits: float
