"""A preference pair: two replies to one prompt, and the person that prefers the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Message: TypeAlias = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, of which a person prefers the chosen one.

    The person is given by `weights` (feature weights), by `preference` (in words; with weights, both apply), by
    `margins` (a verdict for each feature, from which persons are drawn), or not at all: then the pair belongs to the
    person whose feature weights are learned.

    Attributes:
        messages: the conversation, its last turn the user's.
        chosen, rejected: text of the replies.
        preference: the preference in words, for the PersRM's prompt.
        weights: feature weights by name.
        margins: by feature, the score of chosen minus the score of rejected, in the feature's own unit.
        chosen_finished, rejected_finished: whether the reply is complete; False for a reply that was cut.
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
        """The messages as one string, equal for pairs of the same prompt."""
        return json.dumps([dict(message) for message in self.messages])
