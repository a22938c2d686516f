"""Questions to any number of people, from replies that are written once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pad_rt.generator import Generator
from pad_rt.taste.question import Question
from pad_rt.taste.reply_pool import ReplyPool
from pad_rt.taste.taste import Taste


class Interview:
    """The replies to a list of prompts, each written when it is first needed; the next ones while a person reads.

    Any thread may call it. It holds on to no generator, each of which is to be of the same bundle.

    Args:
        prompts: at least one.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = list(prompts)
        self._pools: dict[int, Future[ReplyPool]] = {}
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pad-interview")

    def ask(self, generator: Generator, taste: Taste, turn: int, *, skip: Collection[str] = ()) -> Question | None:
        """A question about the replies to the prompt of this turn, or to any prompt before; None where none tells much.

        Args:
            generator: writes the replies.
            taste: of whom is asked.
            turn: how many questions the person has seen; behind the last prompt it begins again.
            skip: as of `Taste.ask`.

        Raises:
            PadError: as `ReplyPool.write`.
        """
        at = turn % len(self._prompts)
        pool = self._pool(generator, at)
        question = taste.ask(pool, skip=skip)
        if question is None:
            question = taste.ask(self._written(), skip=skip)
        self._begin(generator, (at + 1) % len(self._prompts))
        return question

    def key(self, question: Question) -> str:
        """Names a question to another process that asks about the same prompts."""
        return f"{self._prompts.index(str(question.prompt))}-{question.id}"

    def find(self, generator: Generator, key: str) -> Question | None:
        """The question of a key; None where there is none. Replies that another process wrote are written again."""
        at, _, id = key.partition("-")
        if not at.isdecimal() or len(at) > 9 or int(at) >= len(self._prompts):
            return None
        (pooled,) = self._pool(generator, int(at)).prompts
        questions = (Question.of(pooled.prompt, *pair) for pair in pooled.pairs())
        return next((question for question in questions if question.id == id), None)

    def close(self) -> None:
        """Write no further replies."""
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _pool(self, generator: Generator, at: int) -> ReplyPool:
        """Replies to one prompt; those that could not be written are tried again the next time."""
        begun = self._begin(generator, at)
        try:
            return begun.result()
        except BaseException:
            with self._lock:
                if self._pools.get(at) is begun:
                    del self._pools[at]
            raise

    def _begin(self, generator: Generator, at: int) -> Future[ReplyPool]:
        with self._lock:
            if at not in self._pools:
                self._pools[at] = self._writer.submit(ReplyPool.write, generator, [self._prompts[at]])
            return self._pools[at]

    def _written(self) -> ReplyPool:
        with self._lock:
            pools = [pool.result() for pool in self._pools.values() if pool.done() and pool.exception() is None]
        return ReplyPool(pools[0].features, tuple(itertools.chain(*(pool.prompts for pool in pools))))
