"""The run of a batch: lines in, results out, several at a time."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from pad_rt.batch.lines import BatchLine
from pad_rt.batch.progress import SHOW_EVERY_S, Progress
from pad_rt.batch.results import Results


class Answers(Protocol):
    """What answers lines: a generator in this process, or replicas on a cluster."""

    @property
    def num_places(self) -> int:
        """Lines that it is worth giving it at a time, each on a thread of its own."""

    def answer(self, line: BatchLine) -> dict[str, Any]:
        """Wait for the result of a line, which is a reply, or why there is none.

        Raises:
            PadError: no line can be answered any more.
        """

    def close(self) -> None:
        """End what is being answered: `answer` raises a PadError in all threads."""


def run_batch(lines: Iterable[BatchLine], results: Results, answers: Answers, progress: Progress) -> None:
    """Answer all lines whose results are not there.

    Results are written and counted as they come, by the threads that wait for them: the main thread alone sees Ctrl-C,
    and so it cuts no line, and none that was written is left out of the count.

    Raises:
        PadError: a result cannot be written, or no line can be answered any more.
    """

    def work(line: BatchLine) -> None:
        result = answers.answer(line)
        results.add(result)
        progress.count(result)

    threads = ThreadPoolExecutor(answers.num_places, thread_name_prefix="pad-batch")
    running = set[Future[None]]()
    try:
        for line in lines:
            if line.id not in results.done:
                running.add(threads.submit(work, line))
            while len(running) > answers.num_places:
                running = _take(running, progress)
        while running:
            running = _take(running, progress)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        answers.close()
        threads.shutdown()
        progress.close()


def _take(running: set[Future[None]], progress: Progress) -> set[Future[None]]:
    """Wait a little for results; returns what still runs."""
    ended, running = wait(running, SHOW_EVERY_S, FIRST_COMPLETED)
    for future in ended:
        future.result()
    progress.show()
    return running
