"""A server under load: is every reply right, is nothing leaked, and how long do clients wait?

64 clients of `pad serve` on 127.0.0.1 ask for replies of all kinds, whole and streamed; some read slowly, cut the
connection in the middle, send half a body, bad JSON or too much. One reply in twenty is computed again, alone, in a
generator of this process. Then more requests come at once than may wait, and in the end SIGTERM while a reply runs.
Writes benchmarks/results/serve_load.json and prints a table. Ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from benchmarks.latency.bundles import demo_bundle
from benchmarks.serve.clients import MAX_BODY_MIB, Load
from benchmarks.serve.http import Connection, post
from benchmarks.serve.process import ServerProcess
from benchmarks.serve.wish import MODEL, make_people
from pad_rt import Generator
from pad_rt.bench.rounds import Spread

_CHAT = "/v1/chat/completions"
_SAMPLE_S = 5.0  # between samples of memory
_BURST, _CHOICES = 150, 8  # requests at once, with so many choices each: several times what may wait
_LEAKS = ("files", "threads", "running", "waiting")  # what is back in the end where it was before
_PATIENCE_S = 60.0  # for a server to become idle, or to end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--bundle", type=Path, help="an fp32 bundle; exported if not given")
    parser.add_argument("--check-every", type=int, default=20, help="replies, one of which is computed again, alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_load.json")
    options = parser.parse_args()
    bundle = options.bundle or demo_bundle("fp32")
    with tempfile.TemporaryDirectory() as folder, Generator.load(bundle, keep_mib=0) as alone:
        people, log = Path(folder) / "people.json", Path(folder) / "log"
        features = [feature for persrm in alone.manifest.persrms for feature in persrm.features]
        people.write_text(json.dumps(make_people(features)), encoding="utf-8")
        # Requests wait as long as it takes: how long that is, is what is measured.
        flags = ["--people", str(people), "--max-body-mib", str(MAX_BODY_MIB), "--queue-timeout", "600"]
        with ServerProcess(bundle, flags, log) as server:
            record = {
                "what": "random requests of good and bad clients to pad serve; SmolLM2-135M-Instruct, fp32",
                "minutes": options.minutes,
                "clients": options.clients,
                "seed": options.seed,
                "machine": describe_machine(),
                "versions": versions("pad-rt", "onnxruntime", "starlette", "uvicorn", "h11"),
                **asyncio.run(_measure(server, alone, features, options)),
            }
    write_record(options.out, record)
    print(table(record))
    for fault in (*record["wrong"], *record["failures"]):
        print(f"wrong: {fault}")
    return int(bool(record["wrong"] or record["failures"]))


async def _measure(
    server: ServerProcess, alone: Generator, features: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    warm_up = Load(server.port, alone, features, time.monotonic() + 1, 10**9)
    await warm_up.run(options.clients, options.seed + 10**6)
    await _burst(server, warm_up.failures)  # has all the threads that there will ever be
    await _until_idle(server)
    before, written = _state(server), server.metrics()["pad:generation_tokens_total"]
    start = time.monotonic()
    load = Load(server.port, alone, features, start + 60 * options.minutes, options.check_every)
    memory: list[float] = []
    watching = asyncio.create_task(_watch(server, memory))
    await load.run(options.clients, options.seed)
    seconds = time.monotonic() - start
    written = server.metrics()["pad:generation_tokens_total"] - written
    burst = await _burst(server, load.failures)
    watching.cancel()
    await _until_idle(server, before["files"])
    after = _state(server)
    leaked = [name for name in _LEAKS if after[name] > before[name]]
    load.failures += [f"leaked {name}: {before[name]} before, {after[name]} after" for name in leaked]
    exit_code = await _end(server, load.failures)
    load.failures += _faults_logged(server.log)
    return {
        "seconds": round(seconds, 1),
        "requests": sum(load.outcomes.values()),
        "outcomes": dict(sorted(load.outcomes.items())),
        "kinds": dict(sorted(load.kinds.items())),
        "checked": load.num_checked,
        "wrong": load.wrong,
        "failures": load.failures,
        "tokens_per_s": round(written / seconds, 1),
        "first_token_ms": _spread(load.first_s),
        "between_tokens_ms": _spread(load.between_s),
        "burst": burst,
        "before": before,
        "after": after,
        "private_mib": {"every_s": _SAMPLE_S, "samples": np.round(memory, 1).tolist()},
        "exit_code": exit_code,
    }


def _state(server: ServerProcess) -> dict[str, float]:
    metrics = server.metrics()
    return {
        "files": server.num_files,
        "threads": server.num_threads,
        "running": metrics["pad:num_requests_running"],
        "waiting": metrics["pad:num_requests_waiting"],
        "private_mib": round(server.private_mib, 1),
    }


async def _watch(server: ServerProcess, memory: list[float]) -> None:
    """Take samples of the server's memory, until cancelled."""
    while True:
        memory.append(server.private_mib)
        await asyncio.sleep(_SAMPLE_S)


async def _until_idle(server: ServerProcess, files: float = math.inf) -> None:
    """Wait until no request is left and at most so many files are open, or for as long as is patient."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        await asyncio.sleep(1)
        state = _state(server)
        if not state["running"] and not state["waiting"] and state["files"] <= files:
            return


async def _burst(server: ServerProcess, failures: list[str]) -> dict[str, int]:
    """More requests at once than may wait: some are replied to, and the rest are told to come again."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "n": _CHOICES}

    async def ask() -> int:
        connection = Connection(server.port)
        await connection.send(post(_CHAT, json.dumps(body).encode()))
        answer = await connection.answer()
        connection.cut()
        if answer.status == 200 and len(answer.json()["choices"]) == _CHOICES:
            return 200
        if answer.status == 429 and answer.headers.get("retry-after", "").isdecimal():
            return 429
        failures.append(f"burst: {answer.status}, {answer.headers}, {answer.body[:200]!r}")
        return answer.status

    statuses = await asyncio.gather(*(ask() for _ in range(_BURST)))
    counts = {str(status): statuses.count(status) for status in sorted(set(statuses))}
    if len(counts) < 2:
        failures.append(f"burst: {counts}; expected both replies and 429")
    return counts


async def _end(server: ServerProcess, failures: list[str]) -> int | None:
    """SIGTERM while a reply is streamed: it ends whole, no other one begins, and the process ends with 0."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 100}
    streamed, late = Connection(server.port), Connection(server.port)
    await streamed.send(post(_CHAT, json.dumps({**body, "stream": True, "temperature": 0}).encode()))
    await asyncio.sleep(2)
    server.terminate()
    await asyncio.sleep(0.2)
    try:
        await late.send(post(_CHAT, json.dumps(body).encode()))
        status = (await late.answer()).status
    except (OSError, asyncio.IncompleteReadError):
        status = 503  # it listens no more
    answer = await streamed.answer()
    exit_code = await asyncio.to_thread(server.wait, _PATIENCE_S)
    if not answer.is_whole or status != 503 or exit_code != 0:
        failures.append(f"the end: stream whole {answer.is_whole}, late request {status}, exit code {exit_code}")
    return exit_code


def _faults_logged(log: Path) -> list[str]:
    """Lines that are no record of a request, and records of faults."""
    faults = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            faults.append(f"log: {line[:300]}")
        else:
            if record["status"] == 500 or "error" in record:
                faults.append(f"log: {line[:300]}")
    return faults


def _spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    return rounded(asdict(Spread.of([value * 1e3 for value in seconds])), 1) if seconds else {}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown tables."""
    first, between = record["first_token_ms"], record["between_tokens_ms"]
    before, after, most = record["before"], record["after"], max(record["private_mib"]["samples"])
    figures = [
        ["requests", f"{record['requests']} in {record['seconds']:.0f} s, {record['clients']} clients"],
        ["computed again, wrong", f"{record['checked']}, {len(record['wrong'])}"],
        ["first token, ms", f"{first.get('p50')} (p95 {first.get('p95')})"],
        ["between tokens, ms", f"{between.get('p50')} (p95 {between.get('p95')})"],
        ["tokens/s", f"{record['tokens_per_s']}"],
        ["beyond the queue", ", ".join(f"{status}: {count}" for status, count in record["burst"].items())],
        ["memory, MiB", f"{before['private_mib']} before, {after['private_mib']} after, at most {most}"],
        [
            "files, threads",
            f"{before['files']}, {before['threads']} before; {after['files']}, {after['threads']} after",
        ],
        ["exit code", f"{record['exit_code']}"],
    ]
    outcomes = [[name, str(count)] for name, count in record["outcomes"].items()]
    return markdown(("what", "figure"), figures) + "\n\n" + markdown(("client: status", "requests"), outcomes)


if __name__ == "__main__":
    sys.exit(main())
