"""The history of a chat: its system message and its turns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from pad_rt.text.chat_template import Message


@dataclass(frozen=True)
class History:
    """A chat so far.

    Attributes:
        system: the system message, which is never forgotten; None for a chat without one.
        turns: pairs of the user's message and the reply, oldest first.
    """

    system: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as messages."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for said, reply in self.turns:
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
        return messages

    def prompt(self, message: str) -> list[Message]:
        """The chat as messages, with the user's next message at its end."""
        return [*self.messages, {"role": "user", "content": message}]

    def shortened(self, message: str, room: Callable[[list[Message]], int], *, reserve: int, spare: int = 0) -> History:
        """The history with so many of its oldest turns left out that a reply to this message has room.

        Args:
            message: the user's next message.
            room: gives the tokens of reply that fit behind a prompt.
            reserve: tokens that the reply should have. If no history leaves as many, all turns are left out.
            spare: tokens beside these that are freed if any turn must go, so that the next turns leave the beginning of
                the prompt as it is.
        """
        rooms: dict[int, int] = {}

        def room_from(start: int) -> int:
            if start not in rooms:
                rooms[start] = room(replace(self, turns=self.turns[start:]).prompt(message))
            return rooms[start]

        if room_from(0) >= reserve:
            return self
        last = len(self.turns)
        wanted = reserve + spare if room_from(last) >= reserve + spare else reserve
        start = bisect_left(
            range(last), wanted, lo=min(1, last), key=room_from
        )  # each turn that is left out gives room
        return replace(self, turns=self.turns[start:])

    def then(self, message: str, reply: str) -> History:
        """The history with one more turn."""
        return replace(self, turns=(*self.turns, (message, reply)))

    def rewound(self, turns: int) -> History:
        """The history without so many of its last turns."""
        return replace(self, turns=self.turns[: len(self.turns) - turns])
