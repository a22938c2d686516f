"""What tests of the `pad` command need: a process of it, words on stdin, and a Ctrl-C in the middle of a reply."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pad_rt import GenerationConfig, GenerationResult, Generator

PAD = [sys.executable, "-c", "import sys; from pad_rt.cli.main import main; sys.exit(main())"]
SHORT = GenerationConfig(max_new_tokens=6)
CUT = "pad: cut at 6 tokens (--max-new-tokens)\n"  # what generate says of such a reply


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


class FakeStream(Iterator[str]):
    """A stream of these pieces, without a result."""

    result: GenerationResult | None = None

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        return next(self._pieces)


def interrupted_stream(*, pieces: tuple[str, ...] = ("some",), times: int = 1) -> Any:
    """A `Generator.stream` that Ctrl-C interrupts after these pieces, the first few times."""
    real = Generator.stream
    calls: list[int] = []

    def interrupted() -> Iterator[str]:
        yield from pieces
        raise KeyboardInterrupt

    def stream(self: Generator, *args: Any, **kwargs: Any) -> Iterator[str]:
        calls.append(0)
        if len(calls) > times:
            return real(self, *args, **kwargs)
        return FakeStream(interrupted())

    return stream
