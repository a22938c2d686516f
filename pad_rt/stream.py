"""A reply whose text is given out while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from pad_rt.engine.ticket import Ticket
from pad_rt.result import FinishReason, GenerationResult, Usage

OnEnd: TypeAlias = Callable[[str, GenerationResult | None], object]


class TextStream(Iterator[str]):
    """An iterator over the pieces of one reply; joined, they are its text.

    The reply goes on whether or not its pieces are taken, until it ends or the stream is closed, or forgotten.

    Args:
        ticket: of its request.
        on_end: called once, where the reply ends or is ended, with the text that was given out and the result. Of a
            request that failed it is not called.

    Attributes:
        result: the whole reply, after the last piece; None before that, and for a stream that was closed.
    """

    def __init__(self, ticket: Ticket, on_end: OnEnd | None = None) -> None:
        self._ticket, self._on_end = ticket, on_end
        self._text = ""
        self.result: GenerationResult | None = None

    def __next__(self) -> str:
        """Wait for the next piece; its text will not change. A closed stream ends here."""
        try:
            while not self._ticket.cancellation.is_wanted:
                event = next(self._ticket)
                self._text += event.text
                if event.finish_reason is not None:
                    self.result = self._ticket.result()
                    self.close()
                if event.text:
                    return event.text
            raise StopIteration
        except (StopIteration, KeyboardInterrupt):
            self.close()
            raise
        except BaseException:
            self._on_end = None
            self.close()
            raise

    def close(self) -> None:
        """End the reply here.

        Any thread may close a stream while another reads it: the reading of a prompt ends before the graph's next
        operator, a reply after its next token.
        """
        self._ticket.cancel()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self._text, self.result)

    def __del__(self) -> None:
        self.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """`finish_reason` of the `result`, None before it exists."""
        return self.result.finish_reason if self.result else None

    @property
    def usage(self) -> Usage | None:
        """`usage` of the `result`, None before it exists."""
        return self.result.usage if self.result else None
