"""PAD-RT as one side: its engine, each person a request with feature weights of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.common.caches import forget
from benchmarks.latency.people.task import PeopleTask, Served, serve
from pad_rt import EncodedPrompt, Generator, Preference
from pad_rt.engine.ticket import Ticket


class Ours:
    """Files: bundle."""

    def __init__(self, task: PeopleTask) -> None:
        self._task = task
        self._generator = Generator.load(task.files["bundle"], num_threads=task.threads, keep_mib=0)

    def serve(self, people: Sequence[int], new_tokens: int, *, newcomer: bool) -> Served:
        """A thread waits for each reply."""
        task, served = self._task, Served([], [])
        forget(self._generator)
        due = threading.Event()
        with ThreadPoolExecutor(len(people) + 1) as pool:
            start = time.perf_counter()
            tickets = [self._submit(task.prompts[person], person, new_tokens) for person in people]
            last = len(tickets) - 1
            following = [
                pool.submit(_follow, ticket, start, due if number == last else None, new_tokens // 4)
                for number, ticket in enumerate(tickets)
            ]
            if newcomer:
                due.wait()
                served.arrived = time.perf_counter() - start
                following.append(pool.submit(_follow, self._submit(task.long_prompt, 0, 1), start, None, 0))
            for reply in following:
                tokens, times = reply.result()
                served.tokens.append(tokens)
                served.times.append(times)
        return served

    def _submit(self, ids: Sequence[int], person: int, new_tokens: int) -> Ticket:
        task = self._task
        features = [feature for persrm in self._generator.manifest.persrms for feature in persrm.features]
        strengths = [*task.strengths[person:], *task.strengths[:person]]
        preference = Preference(weights=dict(zip(features, strengths, strict=False)))
        config = {"max_new_tokens": new_tokens, "top_k": task.top_k}
        return self._generator.submit(EncodedPrompt(tuple(ids), tuple(ids)), preference=preference, config=config)


def _follow(ticket: Ticket, start: float, due: threading.Event | None, after: int) -> tuple[list[int], list[float]]:
    """Tokens and seconds of a reply; sets `due` after so many tokens."""
    tokens: list[int] = []
    times: list[float] = []
    for event in ticket:
        tokens += event.token_ids
        times += [time.perf_counter() - start] * len(event.token_ids)
        if due and (len(tokens) >= after or event.finish_reason):
            due.set()
    return tokens, times


if __name__ == "__main__":
    serve(Ours, "pad-rt", "onnxruntime")
