"""What tests of the `pad` command need: a process of it, words on stdin, and a Ctrl-C in the middle of a reply."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from pad_rt import GenerationConfig
from pad_rt.engine.ticket import Event, Ticket

PAD = [sys.executable, "-c", "import sys; from pad_rt.cli.main import main; sys.exit(main())"]
SHORT = GenerationConfig(max_new_tokens=6)
CUT = "pad: cut at 6 tokens (--max-new-tokens)\n"  # what generate says of such a reply


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def interrupted_reply(*, pieces: tuple[str, ...] = ("some",)) -> Any:
    """A `Ticket.__next__` that Ctrl-C interrupts after these pieces, once."""
    real, left = Ticket.__next__, [*pieces, None]

    def next_event(self: Ticket) -> Event:
        if not left:
            return real(self)
        piece = left.pop(0)
        if piece is None:
            raise KeyboardInterrupt
        return Event(piece, ())

    return next_event
