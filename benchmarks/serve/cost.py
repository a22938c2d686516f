"""What a request over HTTP costs beside the same call in Python.

Time to first token of a short guided request, streamed over a connection that stays open, less that of
`Generator.stream`; and time per token of 8 streams at once over that of 8 tickets. The server and the Python side are a
process each, with one thread for operators and on the same core, where they take turns, so that all that the server
does beside decoding is done in the time of that core. The client, as elsewhere an app's own machine, has another core
if there is one. Writes benchmarks/results/serve_cost.json and prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import Child
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from benchmarks.latency.bundles import demo_bundle
from benchmarks.serve.clients import choice_text
from benchmarks.serve.http import Connection, post
from benchmarks.serve.process import ServerProcess
from benchmarks.serve.wish import MODEL
from pad_rt.bench.rounds import Spread, compare, turn

STREAMS = 8
_PATH = "/v1/chat/completions"
_WEIGHTS = {"cheerful": 1.0, "concise": 0.5}
_LOAD_S = 120.0
_WORDS = ("sea", "storm", "bread", "winter", "garden", "letter", "music", "bridge", "market", "star", "horse", "clock")


class Http:
    """The server's side: connections that stay open."""

    def __init__(self, port: int) -> None:
        self._connections = [Connection(port) for _ in range(STREAMS)]

    async def first_token(self, question: str, config: dict[str, Any]) -> float:
        """Seconds from before the request is sent to the first piece."""
        start = time.perf_counter()
        return (await _times(self._connections[0], question, config))[0] - start

    async def side_by_side(self, questions: list[str], config: dict[str, Any]) -> list[list[float]]:
        """When each piece of each reply came."""
        asked = zip(self._connections, questions, strict=True)
        return await asyncio.gather(*(_times(connection, question, config) for connection, question in asked))


async def _times(connection: Connection, question: str, config: dict[str, Any]) -> list[float]:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": config["max_new_tokens"],
        "temperature": config["temperature"],
        "pad": {"weights": _WEIGHTS},
    }
    await connection.send(post(_PATH, json.dumps(body).encode()))
    answer = await connection.answer()
    if not answer.is_whole:
        raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")
    return [when for when, event in answer.events if choice_text(event)]


def per_token(times: list[list[float]]) -> float:
    """Mean seconds from one piece to the next, while all the replies go on."""
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    within = [[when for when in each if first <= when <= last] for each in times]
    return statistics.fmean((each[-1] - each[0]) / (len(each) - 1) for each in within)


async def _measure(python: Child, port: int, rounds: int) -> dict[str, Any]:
    http, chance = Http(port), random.Random(1)
    short, long = ({"max_new_tokens": tokens, "temperature": 0.0} for tokens in (8, 64))
    first: dict[str, list[float]] = {"python": [], "http": []}
    token: dict[str, list[float]] = {"python": [], "http": []}

    def ask(prompt: str | list[str], config: dict[str, Any]) -> Any:
        return python.ask({"prompt": prompt, "weights": _WEIGHTS, "config": config})

    for number in range(-1, rounds):  # the first round is not counted: graphs are opened in it
        sides = turn(("python", "http"), number)
        for _ in range(10):
            question = f"Tell me about the {' and the '.join(chance.sample(_WORDS, 3))}."
            for side in sides:
                took = ask(question, short) if side == "python" else await http.first_token(question, short)
                first[side] += [took] if number >= 0 else []
        questions = [f"Tell me about the {' and the '.join(chance.sample(_WORDS, 3))}." for _ in range(STREAMS)]
        for side in sides:
            times = ask(questions, long) if side == "python" else await http.side_by_side(questions, long)
            token[side] += [per_token(times)] if number >= 0 else []
    return {
        "first_token_ms": {side: _ms(values) for side, values in first.items()},
        "first_token_more_ms": _ms([b - a for a, b in zip(*first.values(), strict=True)]),
        "per_token_ms": {side: _ms(values) for side, values in token.items()},
        "per_token_ratio": rounded(asdict(compare(token["http"], token["python"])), 3),
    }


def _ms(seconds: list[float]) -> dict[str, float]:
    return rounded(asdict(Spread.of([value * 1e3 for value in seconds])), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="an int4 bundle with the shipped PersRM; exported if not given")
    parser.add_argument("--rounds", type=int, default=12, help="ten short requests and eight streams each")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_cost.json")
    options = parser.parse_args()
    bundle = options.bundle or demo_bundle("int4")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # which the two sides inherit
    with tempfile.TemporaryDirectory() as folder:
        python = Child(["-m", "benchmarks.serve.python_side", str(bundle)], environment={})
        try:
            python.read(_LOAD_S)
            flags = ["--threads", "1", "--client-timeout", "600"]  # connections are idle while the other side runs
            with ServerProcess(bundle, flags, Path(folder) / "log") as server:
                os.sched_setaffinity(0, {cores[0]})
                figures = asyncio.run(_measure(python, server.port, options.rounds))
        finally:
            python.end()
    record = {
        "what": "SmolLM2-135M-Instruct, int4, guided by two features; server and Python side on one core in turn",
        "rounds": options.rounds,
        "streams": STREAMS,
        "client_has_a_core": len(cores) > 1,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "starlette", "uvicorn", "h11"),
        **figures,
    }
    write_record(options.out, record)
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    first, token = record["first_token_ms"], record["per_token_ms"]
    more, ratio = record["first_token_more_ms"], record["per_token_ratio"]
    lines = [
        [
            "time to first token, ms",
            f"{first['python']['p50']:.1f}",
            f"{first['http']['p50']:.1f}",
            f"{more['p50']:+.1f} ms ({more['p25']:+.1f} to {more['p75']:+.1f})",
        ],
        [
            f"time per token of {record['streams']} streams, ms",
            f"{token['python']['p50']:.1f}",
            f"{token['http']['p50']:.1f}",
            f"{ratio['p50']:.3f}x ({ratio['p25']:.3f} to {ratio['p75']:.3f})",
        ],
    ]
    return markdown(("", "Python", "HTTP", "HTTP beside Python (quartiles)"), lines)


if __name__ == "__main__":
    main()
