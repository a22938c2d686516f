"""Clients of a server, good and bad, and what came of their requests."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.serve.http import Answer, Connection, post
from benchmarks.serve.wish import Wish, make_wish
from pad_rt import Generator

MAX_BODY_MIB = 0.25  # of the server, so that sending too much costs little
_REFUSED = {"bad JSON": 400, "unknown field": 400, "wrong value": 400, "unknown model": 404, "too large": 413}
_BEHAVIOURS = {"read": 60, "slow": 8, "cut": 14, "half-sent": 6, **dict.fromkeys(_REFUSED, 3)}  # how often
_WAYS, _OFTEN = tuple(_BEHAVIOURS), tuple(_BEHAVIOURS.values())


@dataclass
class Load:
    """What was asked, what came, and how long it took.

    Attributes:
        port: of the server.
        alone: a generator of the same bundle, in which replies are computed again.
        features: of the bundle.
        ends: when no further request is made, by `time.monotonic`.
        check_every: replies, one of which is computed again.
        outcomes: requests by what the client did and what came.
        kinds: requests that were replied to, by what guided them.
        wrong: replies that are not what the generator alone says.
        failures: what no client should see.
        first_s, between_s: seconds to the first token and from one token to the next, of streams that were read.
        num_checked: replies that were computed again.
    """

    port: int
    alone: Generator
    features: Sequence[str]
    ends: float
    check_every: int
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    num_checked: int = 0
    _num_replies: int = 0
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, num_clients: int, seed: int) -> None:
        """Clients side by side, until the time is over."""
        await asyncio.gather(*(self._work(random.Random(seed + number)) for number in range(num_clients)))

    async def _work(self, chance: random.Random) -> None:
        connection = Connection(self.port)
        while time.monotonic() < self.ends:
            way = chance.choices(_WAYS, _OFTEN)[0]
            try:
                await self._ask(connection, chance, way)
            except (OSError, asyncio.IncompleteReadError) as error:
                connection.cut()
                self._fail(way, f"no reply: {error!r}")
        connection.cut()

    async def _ask(self, connection: Connection, chance: random.Random, way: str) -> None:
        wish = make_wish(chance, self.features)
        body = json.dumps(wish.body).encode()
        if way == "half-sent":
            await connection.send(post(wish.path, body[: len(body) // 2], length=len(body)))
            await asyncio.sleep(chance.uniform(0, 1))
            connection.cut()
            self.outcomes[way] += 1
        elif way in _REFUSED:
            await connection.send(post(wish.path, _spoil(body, way)))
            answer = await connection.answer()
            self._count(way, answer)
            if answer.status != _REFUSED[way] or "error" not in answer.json():
                self._fail(way, f"{answer.status} {answer.body[:200]!r}")
        else:
            began = time.perf_counter()
            await connection.send(post(wish.path, body))
            if way == "cut" and (not wish.is_stream or chance.random() < 0.3):
                await asyncio.sleep(chance.uniform(0, 3))
                connection.cut()
                self.outcomes["cut before the reply"] += 1
                return
            cut_after = chance.randrange(10) if way == "cut" else None
            pause = chance.uniform(0.05, 0.5) if way == "slow" else 0.0
            answer = await connection.answer(pause=pause, cut_after=cut_after)
            self._count(way, answer)
            if pause:
                connection.cut()  # the server may have waited longer for a next request than it does
            if self._take(wish, way, answer, began):
                connection.cut()  # it would be idle for long
                async with self._checking:
                    await asyncio.to_thread(self._check, wish, answer)

    def _take(self, wish: Wish, way: str, answer: Answer, began: float) -> bool:
        """Note a reply; returns whether it is one to compute again."""
        if answer.status != 200 or not (answer.is_whole or way == "cut"):
            self._fail(way, f"{answer.status}, whole: {answer.is_whole}, {answer.body[-200:]!r}: {wish.body}")
            return False
        self.kinds[wish.kind] += 1
        if way == "read" and wish.is_stream and wish.n == 1:
            times = [time for time, event in answer.events if choice_text(event)]
            self.first_s += [times[0] - began] if times else []
            self.between_s += [later - sooner for sooner, later in pairwise(times)]
        self._num_replies += 1
        return self._num_replies % self.check_every == 0

    def _check(self, wish: Wish, answer: Answer) -> None:
        """Hold a reply, or the beginning of one, against the same call alone."""
        prompts, preferences, configs = wish.call(self.alone)
        results = self.alone.generate_batch(prompts, preferences=preferences, configs=configs)
        self.num_checked += 1
        expected: dict[str, Any] = {"texts": [result.text for result in results]}
        got: dict[str, Any] = {"texts": _texts(wish, answer)}
        if not answer.is_whole:
            expected["texts"] = [result.text[: len(text)] for text, result in zip(got["texts"], results, strict=True)]
        elif not wish.is_stream:
            body = answer.json()
            expected["finish"] = [result.finish_reason for result in results]
            got["finish"] = [choice["finish_reason"] for choice in body["choices"]]
            expected["tokens"] = sum(result.usage.completion_tokens for result in results)
            got["tokens"] = body["usage"]["completion_tokens"]
        if got != expected:
            self.wrong.append(f"{wish.body}: {got}, alone {expected}")

    def _count(self, way: str, answer: Answer) -> None:
        self.outcomes[f"{way}: {answer.status}"] += 1

    def _fail(self, way: str, what: str) -> None:
        self.failures.append(f"{way}: {what}")


def _spoil(body: bytes, way: str) -> bytes:
    """A body that must be refused in the given way."""
    fields = json.loads(body)
    if way == "bad JSON":
        return body[:-3]
    if way == "too large":
        return json.dumps(fields | {"user": "x" * int((MAX_BODY_MIB + 0.1) * 2**20)}).encode()
    changes: dict[str, dict[str, object]] = {
        "unknown field": {"guided_regex": "a"},
        "wrong value": {"temperature": "hot"},
        "unknown model": {"model": "none"},
    }
    return json.dumps(fields | changes[way]).encode()


def choice_text(event: Any) -> str:
    """The text that an event of a stream adds to its choice."""
    choices: Sequence[Any] = event["choices"] if isinstance(event, dict) else ()
    return "".join(str(choice.get("text", choice.get("delta", {}).get("content")) or "") for choice in choices)


def _texts(wish: Wish, answer: Answer) -> list[str]:
    """The text of each choice, so far."""
    if not wish.is_stream:
        choices = answer.json()["choices"]
        return [choice["message"]["content"] if wish.is_chat else choice["text"] for choice in choices]
    texts = [""] * wish.n
    for _, event in answer.events:
        if isinstance(event, dict) and event["choices"]:
            texts[event["choices"][0]["index"]] += choice_text(event)
    return texts
