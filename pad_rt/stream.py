"""A reply whose text is given out while it is generated."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress

from pad_rt.result import FinishReason, GenerationResult, Usage
from pad_runtime.cancellation import Cancellation
from pad_runtime.errors import CancelledError


class TextStream(Iterator[str]):
    """An iterator over the pieces of one reply; joined, they are its text.

    Args:
        pieces: yields the pieces, and returns the whole reply.
        cancellation: ends the reading of the prompt.

    Attributes:
        result: the whole reply, after the last piece; None before that, and for a stream that was closed.
    """

    def __init__(self, pieces: Generator[str, None, GenerationResult], cancellation: Cancellation) -> None:
        self._pieces, self._cancellation = pieces, cancellation
        self.result: GenerationResult | None = None

    def __next__(self) -> str:
        """Wait for the next piece; its text will not change. A closed stream ends here."""
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
        """End the reply here.

        Any thread may close a stream while another reads it: the reading of a prompt ends before the graph's next
        operator, a reply after its next piece.
        """
        self._cancellation.want()
        with suppress(ValueError):  # another thread is inside the generator
            self._pieces.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """`finish_reason` of the `result`, None before it exists."""
        return self.result.finish_reason if self.result else None

    @property
    def usage(self) -> Usage | None:
        """`usage` of the `result`, None before it exists."""
        return self.result.usage if self.result else None
