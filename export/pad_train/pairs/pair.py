"""A preference pair: two replies to one prompt, and who prefers the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Message: TypeAlias = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, the chosen one preferred.

    By whom is said in one of four ways: `weights` (a person w_p over named features), `preference` (a person in words;
    with weights too, both apply), `margins` (each feature's own verdict, from which people are drawn), or nothing (the
    one person whose w_p is to be learned).

    Attributes:
        messages: the conversation, its last turn the user's.
        chosen, rejected: the replies' text.
        preference: the preference in words, for the PersRM's prompt.
        weights: w_p by feature.
        margins: by feature, how much better chosen is than rejected, in the feature's own unit; negative where worse.
        chosen_finished, rejected_finished: whether the reply ends there, or was cut and would have gone on.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    preference: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    chosen_finished: bool = True
    rejected_finished: bool = True

    @property
    def conversation(self) -> str:
        """The messages as one string: the same for pairs of one prompt."""
        return json.dumps([dict(message) for message in self.messages])
