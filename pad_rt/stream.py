"""A reply that is read while it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress

from pad_rt.result import FinishReason, GenerationResult, Usage
from pad_runtime.cancellation import Cancellation
from pad_runtime.errors import CancelledError


class TextStream(Iterator[str]):
    """Pieces of one reply; joined, they are its text.

    Args:
        pieces: yields them, and returns the whole reply.
        cancellation: ends the reading of the prompt.

    Attributes:
        result: the whole reply, once the last piece was read; None before, and of a stream that was closed.
    """

    def __init__(self, pieces: Generator[str, None, GenerationResult], cancellation: Cancellation) -> None:
        self._pieces, self._cancellation = pieces, cancellation
        self.result: GenerationResult | None = None

    def __next__(self) -> str:
        """The next piece, as soon as it is final; none of a stream that was closed."""
        if self._cancellation.is_wanted:
            self._pieces.close()
        try:
            return next(self._pieces)
        except CancelledError:
            raise StopIteration from None
        except StopIteration as end:
            self.result = self.result or end.value
            raise StopIteration from None

    def close(self) -> None:
        """Read no further: the reply ends here, and what it was made with serves the next one.

        Another thread than the one that reads may close it, too: a prompt is read no further than the graph's next
        operator, and a reply no further than its next piece.
        """
        self._cancellation.want()
        with suppress(ValueError):  # the other thread is making a piece
            self._pieces.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply ended, once `result` is there."""
        return self.result.finish_reason if self.result else None

    @property
    def usage(self) -> Usage | None:
        """Tokens read and made, once `result` is there."""
        return self.result.usage if self.result else None
