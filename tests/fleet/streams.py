"""Replies that are streamed by the official client, each on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import openai

PATIENCE_S = 120.0


class Stream(threading.Thread):
    """A reply on its way.

    Attributes:
        text: so far.
        error: that ended it; None while it runs, and of a whole reply.
    """

    def __init__(self, client: openai.OpenAI, **body: Any) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.error: Exception | None = None
        self._client, self._body = client, body
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._client.chat.completions.create(stream=True, **self._body):
                self.text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        except openai.OpenAIError as error:
            self.error = error


def wait_for(what: str, holds: Callable[[], object]) -> None:
    """Wait until something holds, for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
