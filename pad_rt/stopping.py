"""Stop strings, found in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text before the stop string that is completed first.

    The cut does not depend on how the text is split: the match with the smallest end wins, and of several that end
    there the longest.

    Args:
        stop: non-empty strings; none of them shown.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._max_held = max(map(len, self._stop), default=1) - 1
        self._held = ""
        self._has_stopped = False

    def push(self, piece: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Returns:
            The text that is safe to show (a suffix that may begin a stop string is held back), and whether a stop
            string is complete; from then on every push gives ("", True).
        """
        if not self._stop:
            return piece, False
        if self._has_stopped:
            return "", True
        text = self._held + piece
        starts = ((text.find(stop), len(stop)) for stop in self._stop)
        match = min(((start + length, start) for start, length in starts if start >= 0), default=None)
        if match is not None:
            self._has_stopped = True
            self._held = ""
            return text[: match[1]], True
        safe = len(text) - self._held_length(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What was held back, when the text ends without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        for length in range(min(self._max_held, len(text)), 0, -1):
            suffix = text[-length:]
            if any(stop.startswith(suffix) for stop in self._stop):
                return length
        return 0
