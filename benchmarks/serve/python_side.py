"""The same calls in Python, in a process of their own: lines of JSON in, lines of JSON out.

python -m benchmarks.serve.python_side BUNDLE
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.process import answers
from pad_rt import Generator, Preference
from pad_rt.engine.ticket import Ticket


def first_token(generator: Generator, question: str, call: Mapping[str, Any]) -> float:
    """Seconds from the call of `stream` to its first piece; the reply is read to its end."""
    start = time.perf_counter()
    stream = generator.stream(question, preference=_preference(call), config=call["config"])
    next(stream)
    took = time.perf_counter() - start
    for _ in stream:
        pass
    return took


def side_by_side(generator: Generator, questions: list[str], call: Mapping[str, Any]) -> list[list[float]]:
    """When each event of each reply came: a ticket a question, and a thread that reads it."""
    times: list[list[float]] = [[] for _ in questions]

    def read(ticket: Ticket, times: list[float]) -> None:
        for event in ticket:
            if event.text:
                times.append(time.perf_counter())

    tickets = [generator.submit(each, preference=_preference(call), config=call["config"]) for each in questions]
    threads = [threading.Thread(target=read, args=pair) for pair in zip(tickets, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def _preference(call: Mapping[str, Any]) -> Preference:
    return Preference(weights=call["weights"])


def main() -> None:
    answer = answers()
    with Generator.load(Path(sys.argv[1]), num_threads=1) as generator:
        answer("ready")
        for line in sys.stdin:
            asked = json.loads(line)
            if isinstance(asked["prompt"], str):
                answer(first_token(generator, asked["prompt"], asked))
            else:
                answer(side_by_side(generator, asked["prompt"], asked))


if __name__ == "__main__":
    main()
