"""A side of the comparison: a process that serves people at once when it is asked to, and says when each token came.

The driver starts it with a task as JSON, then writes {"people": [numbers], "new_tokens": n, "newcomer": bool} on a line
of its own for every round and reads one JSON line back. Standard library and NumPy only: every peer's environment has
them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.latency.peers.loop import Task, answer_requests, choose


@dataclass(frozen=True, kw_only=True)
class PeopleTask(Task):
    """Who asks for what.

    Attributes:
        prompts: token ids, by person; base and PersRM read the same.
        strengths: of each person's reward.
        long_prompt: of a newcomer, who comes while others are served, and wants one token.
        new_tokens: most tokens of a reply.
    """

    prompts: list[list[int]]
    strengths: list[float]
    long_prompt: list[int]
    new_tokens: int

    @property
    def room(self) -> int:
        """Tokens that the longest prompt and its reply come to."""
        return max(len(ids) for ids in (*self.prompts, self.long_prompt)) + self.new_tokens


@dataclass
class Served:
    """What people were given, and when; a newcomer is the last of them.

    Attributes:
        tokens: ids by person.
        times: seconds from the first request to each token, by person.
        arrived: seconds to the newcomer's request; None without one.
    """

    tokens: list[list[int]]
    times: list[list[float]]
    arrived: float | None = None


class PeopleServer(Protocol):
    """What a side brings."""

    def serve(self, people: Sequence[int], new_tokens: int, *, newcomer: bool) -> Served:
        """Serve people who all ask at once, greedily; a newcomer asks when each has a quarter of the tokens."""


class Sequences(Protocol):
    """One model with the KV caches of several sequences; logits are [vocab]."""

    def read(self, ids: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Append tokens to sequences; returns the logits after each one's last."""

    def forget(self) -> None:
        """Empty the caches."""


class TwoModels:
    """PAD with two models: what an app writes on top of an engine that gives logits."""

    def __init__(self, base: Sequences, reward: Sequences, task: PeopleTask) -> None:
        self._base, self._reward, self._task = base, reward, task

    def serve(self, people: Sequence[int], new_tokens: int, *, newcomer: bool) -> Served:
        """One run of each model for all who are there: a newcomer's whole prompt beside the others' tokens."""
        task, late = self._task, len(people)
        served = Served([[] for _ in range(late + newcomer)], [[] for _ in range(late + newcomer)])
        strengths = [*(task.strengths[person] for person in people), task.strengths[0]]
        unread: dict[int, Sequence[int]] = {number: task.prompts[person] for number, person in enumerate(people)}
        start = time.perf_counter()
        while unread:
            logits, rewards = self._base.read(unread), self._reward.read(unread)
            for number in logits:
                token = choose(logits[number], rewards[number], task.top_k, strengths[number])
                served.tokens[number].append(token)
                served.times[number].append(time.perf_counter() - start)
            wanted = {number: 1 if number == late else new_tokens for number in logits}
            unread = {n: ids[-1:] for n, ids in enumerate(served.tokens) if n in wanted and len(ids) < wanted[n]}
            if newcomer and served.arrived is None and len(served.tokens[0]) >= new_tokens // 4:
                served.arrived = time.perf_counter() - start
                unread[late] = task.long_prompt
        self._base.forget()
        self._reward.forget()
        return served


def serve(make: Callable[[PeopleTask], PeopleServer], *packages: str) -> None:
    """Answer rounds until stdin ends; `packages` do the work."""
    task = PeopleTask(**json.loads(sys.argv[1]))

    def begin() -> Callable[[Any], Any]:
        server = make(task)
        return lambda request: asdict(
            server.serve(request["people"], request["new_tokens"], newcomer=request["newcomer"])
        )

    answer_requests(task.core, begin, *packages)
