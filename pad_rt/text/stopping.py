"""Stop strings, found in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress


class StopStrings:
    """Cuts a stream of text before the stop string that is completed first.

    The cut does not depend on how the text is split: the match with the smallest end wins, and the longest of several
    with that end. A stop string that contains a special token is searched for in the text with special tokens written
    out; any other stop string in the text that is shown.

    Args:
        stop: non-empty strings; the text is cut before them.
        special: texts of the tokens that are not shown.
    """

    def __init__(self, stop: Sequence[str], special: Iterable[str] = ()) -> None:
        tokens = tuple(special) if stop else ()
        self._written = tuple(string for string in stop if any(token in string for token in tokens))
        self._shown = tuple(string for string in stop if string not in self._written)
        self._held = ""
        self._is_shown: list[bool] = []  # of each character held
        self._has_stopped = False

    def push(self, piece: str, *, special: str = "") -> tuple[str, bool]:
        """Append the text of a token.

        Args:
            piece: the text that the token adds.
            special: the token's name, if it is a special token, which is not shown.

        Returns:
            The text that is safe to show (a suffix that may begin a stop string is held back), and whether a stop
            string is complete; after that every push gives ("", True).
        """
        if not self._shown and not self._written:
            return piece, False
        if self._has_stopped:
            return "", True
        text = self._held + special + piece
        is_shown = self._is_shown + [False] * len(special) + [True] * len(piece)
        matches, safe = [], len(text)
        for strings, places in (
            (self._written, range(len(text))),
            (self._shown, list(compress(range(len(text)), is_shown))),
        ):
            if strings:
                view = "".join([text[place] for place in places])
                starts = ((view.find(string), len(string)) for string in strings)
                matches += [(places[start + length - 1] + 1, places[start]) for start, length in starts if start >= 0]
                held = _held_length(view, strings)
                safe = min(safe, places[-held]) if held else safe
        end = min(matches)[1] if matches else safe
        self._has_stopped = bool(matches)
        self._held, self._is_shown = ("", []) if matches else (text[end:], is_shown[end:])
        return "".join(compress(text[:end], is_shown)), self._has_stopped

    def flush(self) -> str:
        """The text that was held back, at the end of a text without a stop string."""
        shown = "".join(compress(self._held, self._is_shown))
        self._held, self._is_shown = "", []
        return shown


def _held_length(text: str, strings: Sequence[str]) -> int:
    """Length of the longest suffix that is the beginning of a stop string."""
    for length in range(min(max(map(len, strings)) - 1, len(text)), 0, -1):
        suffix = text[-length:]
        if any(string.startswith(suffix) for string in strings):
            return length
    return 0
