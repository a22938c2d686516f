"""What a chat remembers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from pad_rt.text.chat_template import Message


@dataclass(frozen=True)
class History:
    """The turns of a chat behind its system message.

    Attributes:
        system: stays whatever goes; None for a chat without.
        turns: what the user said and what was replied, oldest first.
    """

    system: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    def prompt(self, message: str) -> list[Message]:
        """The chat up to the user's next message."""
        messages: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for said, reply in self.turns:
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
        return [*messages, {"role": "user", "content": message}]

    def shortened(self, message: str, room: Callable[[list[Message]], int], reserve: int) -> History:
        """The history that leaves room for a reply to this message: whole turns go, oldest first.

        Args:
            message: the user's next one.
            room: tokens of reply that fit behind a prompt.
            reserve: tokens wanted; all turns go where not even that gives as many.
        """

        def fits(start: int) -> bool:
            return room(replace(self, turns=self.turns[start:]).prompt(message)) >= reserve

        start = bisect_left(range(len(self.turns)), True, key=fits)  # fewer turns never leave less room
        return replace(self, turns=self.turns[start:])

    def then(self, message: str, reply: str) -> History:
        """The history with one more turn."""
        return replace(self, turns=(*self.turns, (message, reply)))
