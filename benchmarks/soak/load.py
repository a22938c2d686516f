"""Threads and asyncio tasks that ask for replies, and what came of it."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.soak.wish import Wish, make_wish
from pad_rt import Generator
from pad_rt.bench.machine import private_mib
from pad_runtime.errors import CancelledError

_SAMPLE_S = 10.0  # between samples of memory


@dataclass
class Load:
    """What was asked, what came, and what it took.

    Attributes:
        counts: requests, cancelled, tokens, cached_tokens, checked, and each kind.
        wrong: checked replies that were other tokens.
        seconds, memory, threads: a sample of each every 10 s; memory in MiB, without pages of files.
    """

    generator: Generator
    alone: Generator
    ends: float
    check_every: int
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def goes_on(self) -> bool:
        """Whether there is time for another request."""
        return time.monotonic() < self.ends

    def work(self, seed: int) -> None:
        """Ask, as one thread of an app does, until the time is over."""
        chance = random.Random(seed)
        while self.goes_on:
            wish = make_wish(chance, self.generator.manifest)
            ids: list[int] = []
            ticket = self.generator.submit(wish.prompt, preference=wish.preference, config=wish.config)
            for number, event in enumerate(ticket):
                ids += event.token_ids
                if number == wish.cancel_after:
                    ticket.cancel()
            try:
                cached = ticket.result().usage.cached_tokens
            except CancelledError:
                self._take(wish, ids, 0, is_whole=False)
            else:
                self._take(wish, ids, cached, is_whole=True)

    async def work_async(self, seed: int) -> None:
        """The same by asyncio."""
        chance = random.Random(seed)
        while self.goes_on:
            wish = make_wish(chance, self.generator.manifest)
            ids: list[int] = []
            cached, is_whole, number = 0, False, 0
            async for event in self.generator.astream(wish.prompt, preference=wish.preference, config=wish.config):
                ids += event.token_ids
                if event.usage:
                    cached, is_whole = event.usage.cached_tokens, True
                if number == wish.cancel_after:
                    break
                number += 1
            await asyncio.to_thread(self._take, wish, ids, cached, is_whole=is_whole)

    def watch(self) -> None:
        """Take samples until the time is over."""
        start = time.monotonic()
        while self.goes_on:
            time.sleep(max(0.0, min(_SAMPLE_S, self.ends - time.monotonic())))
            self.seconds.append(time.monotonic() - start)
            self.memory.append(private_mib() or math.nan)
            self.threads.append(threading.active_count())

    def _take(self, wish: Wish, ids: list[int], cached: int, *, is_whole: bool) -> None:
        with self._lock:
            self.counts.update(
                {wish.kind: 1, "requests": 1, "cancelled": not is_whole, "tokens": len(ids), "cached_tokens": cached}
            )
            if self.counts["requests"] % self.check_every == 0:
                self._check(wish, ids, is_whole)

    def _check(self, wish: Wish, ids: list[int], is_whole: bool) -> None:
        """Hold a reply, or the beginning of one that was cancelled, against the same request alone."""
        alone = self.alone.generate(wish.prompt, preference=wish.preference, config=wish.config).token_ids
        self.counts["checked"] += 1
        if tuple(ids) != (alone if is_whole else alone[: len(ids)]):
            self.wrong.append(f"{wish}: {ids}, alone {list(alone)}")


def run(load: Load, num_workers: int, seed: int) -> list[str]:
    """Half of the workers as threads, half as tasks; returns what they raised."""
    failures: list[str] = []

    def guarded(seed: int) -> None:
        try:
            load.work(seed)
        except Exception as error:  # is reported, and the others go on
            failures.append(repr(error))

    async def tasks() -> None:
        seeds = range(seed + num_workers // 2, seed + num_workers)
        outcomes = await asyncio.gather(*map(load.work_async, seeds), return_exceptions=True)
        failures.extend(repr(outcome) for outcome in outcomes if outcome is not None)

    threads = [threading.Thread(target=guarded, args=(seed + number,)) for number in range(num_workers // 2)]
    threads += [threading.Thread(target=load.watch), threading.Thread(target=asyncio.run, args=(tasks(),))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
