"""A reply that is read while it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pad_rt.result import FinishReason, GenerationResult, Usage


class TextStream(Iterator[str]):
    """Pieces of one reply; joined, they are its text.

    Args:
        pieces: yields them, and returns the whole reply.

    Attributes:
        result: the whole reply, once the last piece was read; None before, and of a stream that was closed.
    """

    def __init__(self, pieces: Generator[str, None, GenerationResult]) -> None:
        self._pieces = pieces
        self.result: GenerationResult | None = None

    def __next__(self) -> str:
        """The next piece, as soon as it is final."""
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.result = self.result or end.value
            raise StopIteration from None

    def close(self) -> None:
        """Read no further: the reply ends here, and what it was made with serves the next one."""
        self._pieces.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply ended, once `result` is there."""
        return self.result.finish_reason if self.result else None

    @property
    def usage(self) -> Usage | None:
        """Tokens read and made, once `result` is there."""
        return self.result.usage if self.result else None
