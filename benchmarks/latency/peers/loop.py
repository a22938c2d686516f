"""A peer's side of a comparison: a process that decodes when it is asked to, and says how long each token took.

The driver (`process.py`) starts it with a task as JSON, then writes {"new_tokens": n, "guided_first": bool} on a
line of its own for every round and reads one JSON line back. Standard library and NumPy only: every peer's environment
has them.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.common.process import answers
from benchmarks.common.records import versions


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task of a peer says.

    Attributes:
        top_k: candidates.
        threads: inside one operator.
        core: the one core to stay on, or None.
        files: paths that the peer needs, by its own names.
    """

    top_k: int
    threads: int
    core: int | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PeerTask(Task):
    """What a peer decodes.

    Attributes:
        base_ids, reward_ids: prompts of the base and of the PersRM.
        beta: strength of the reward.
        max_new_tokens: most tokens of a round.
    """

    base_ids: list[int]
    reward_ids: list[int]
    beta: float
    max_new_tokens: int


class PeerDecoder(Protocol):
    """What a peer brings."""

    def decode(self, guided: bool) -> Iterator[int]:
        """Greedy token ids without end: the first after reading the prompts, then one a step."""


class LogitsModel(Protocol):
    """A model with a KV cache; logits are [vocab]."""

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Forget what came before, read a prompt, return the logits after it."""

    def step(self, token: int) -> np.ndarray:
        """Read one more token, return the logits after it."""


def decode_pair(base: LogitsModel, reward: LogitsModel, task: PeerTask, guided: bool) -> Iterator[int]:
    """PAD with two models, each with its own cache: what an app writes on top of an engine that gives logits."""
    logits = base.prefill(task.base_ids)
    rewards = reward.prefill(task.reward_ids) if guided else logits
    while True:
        token = choose(logits, rewards, task.top_k, task.beta) if guided else int(logits.argmax())
        yield token
        logits = base.step(token)
        rewards = reward.step(token) if guided else logits


def choose(logits: np.ndarray, rewards: np.ndarray, top_k: int, beta: float) -> int:
    """argmax of z_base + beta * (log pi_persrm - log pi_base) over the base's top k; both [vocab].

    The normalisers are constants over the candidates and drop out.
    """
    candidates = np.argpartition(logits, -top_k)[-top_k:]
    base = logits[candidates]
    return int(candidates[(base + beta * (rewards[candidates] - base)).argmax()])


def serve(make: Callable[[PeerTask], PeerDecoder], *packages: str) -> None:
    """Answer rounds until stdin ends.

    Args:
        make: builds the decoder.
        packages: that do the work; the driver is told their versions.
    """
    task = PeerTask(**json.loads(sys.argv[1]))

    def begin() -> Callable[[Any], Any]:
        decoder = make(task)
        return lambda request: _round(decoder, request)

    answer_requests(task.core, begin, *packages)


def answer_requests(core: int | None, begin: Callable[[], Callable[[Any], Any]], *packages: str) -> None:
    """Say the versions of packages, then answer each line of stdin, until it ends.

    Args:
        core: the one core to stay on, or None.
        begin: makes what answers a request; imports and models are best made there, after the process has settled on
            its core.
        packages: whose versions the driver is told.
    """
    answer = answers()
    if core is not None:
        os.sched_setaffinity(0, {core})
    respond = begin()
    answer({"versions": versions(*packages)})
    for line in sys.stdin:
        answer(respond(json.loads(line)))


def _round(decoder: PeerDecoder, request: Any) -> dict[str, Any]:
    """Tokens and milliseconds of one guided and one plain reply."""
    record: dict[str, Any] = {}
    for guided in (True, False) if request["guided_first"] else (False, True):
        tokens, times = _timed(decoder.decode(guided), request["new_tokens"])
        at = "" if guided else "base_"
        record |= {f"{at}tokens": tokens, f"{at}prefill_ms": times[0], f"{at}step_ms": times[1:]}
    return record


def _timed(ids: Iterator[int], count: int) -> tuple[list[int], list[float]]:
    """The first ids and the milliseconds to each."""
    tokens, times = [], []
    start = time.perf_counter()
    for token in itertools.islice(ids, count):
        now = time.perf_counter()
        tokens.append(token)
        times.append((now - start) * 1e3)
        start = time.perf_counter()
    return tokens, times
