"""What a streamed token costs besides its computation: processor time of the server, and of Ray Serve's two processes.

A tiny model makes the tokens, so that nearly all of the time is that of the programs around it. Processor time, not the
clock: other programs on the machine change it little. The three ways take turns. Writes benchmarks/results/fleet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, versions, write_record
from pad_rt import Generator, Preference
from tests.support import tiny_bundles, tiny_models

STREAMS, TOKENS = 8, 500
Processes = dict[str, int]  # ids of the processes whose time is counted, by what they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "fleet.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pad-", dir="/tmp") as folder, _ways(_make_bundle(Path(folder))) as ways:
        rounds = [{name: ask() for name, ask in ways.items()} for _ in range(options.rounds + 1)][1:]
    record = {
        "what": f"processor time for each streamed token, {STREAMS} guided streams of {TOKENS} tokens of a tiny model",
        "rounds": options.rounds,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "starlette", "uvicorn", "ray"),
        "us_per_token": {
            way: {
                process: [round(quartile) for quartile in statistics.quantiles(each[way][process] for each in rounds)]
                for process in rounds[0][way]
            }
            for way in rounds[0]
        },
    }
    write_record(options.out, record)
    print(json.dumps(record, indent=1))


def _make_bundle(folder: Path) -> Path:
    tiny_models.make_base(folder / "base", "llama", seed=1, max_position_embeddings=1024)
    tiny_models.make_adapter(folder / "cheerful", folder / "base", seed=2)
    persrms = [folder / "cheerful"]
    return tiny_bundles.export(
        folder / "bundle", folder / "base", persrms, max_batch=STREAMS, max_top_k=20, max_length=1024
    )


@contextmanager
def _ways(bundle: Path) -> Iterator[dict[str, Callable[[], dict[str, float]]]]:
    """What gives the microseconds a token of each process, by the way in which tokens are asked for."""
    with tiny_bundles.load(bundle) as generator, _server(bundle) as server, _fleet(bundle) as fleet:
        yield {
            "generator": lambda: _measure({"generator": os.getpid()}, lambda: _generate(generator)),
            "pad serve": lambda: _measure(server[1], lambda: _stream(server[0])),
            "Ray Serve": lambda: _measure(fleet[1], lambda: _stream(fleet[0])),
        }


def _measure(processes: Processes, work: Callable[[], None]) -> dict[str, float]:
    before = {name: _cpu_seconds(id) for name, id in processes.items()}
    work()
    time.sleep(0.2)  # what the client does not wait for
    return {name: 1e6 * (_cpu_seconds(id) - before[name]) / (STREAMS * TOKENS) for name, id in processes.items()}


def _cpu_seconds(process: int) -> float:
    """Of all its threads, in user and system mode."""
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


# -- ways -------------------------------------------------------------------------------------------------------------


def _generate(generator: Generator) -> None:
    prompts = [f"egg {number}" for number in range(STREAMS)]
    preferences = [Preference(weights={"cheerful": 1.0})] * STREAMS
    generator.generate_batch(prompts, preferences=preferences, config={"max_new_tokens": TOKENS})


def _stream(port: int) -> None:
    """Take the streams, each on a thread of its own."""
    with ThreadPoolExecutor(STREAMS) as threads:
        assert all(threads.map(partial(_take, port), range(STREAMS)))


def _take(port: int, number: int) -> bool:
    """Whether the reply came whole: an event for each token, as each has a log-probability, if not text."""
    body = {
        "model": "bundle",
        "messages": [{"role": "user", "content": f"egg {number}"}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "logprobs": True,
        "pad": {"weights": {"cheerful": 1.0}},
    }
    with closing(HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        events = connection.getresponse().read().rstrip().split(b"\n\n")
        return len(events) > TOKENS and events[-1] == b"data: [DONE]"


@contextmanager
def _server(bundle: Path) -> Iterator[tuple[int, Processes]]:
    """The port of `pad serve`, and its process."""
    port = _free_port()
    command = "import sys; from pad_rt.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(bundle), "--port", str(port), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert "is ready" in process.stdout.readline()
        yield port, {"server": process.pid}
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def _fleet(bundle: Path) -> Iterator[tuple[int, Processes]]:
    """The port of Ray Serve's proxy, and the processes of proxy and replica."""
    import ray
    from ray import serve

    from pad_rt.serve.fleet import application

    port = _free_port()
    ray.init(address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        quiet: dict[str, Any] = {"logging_config": {"log_level": "ERROR", "enable_access_log": False}}
        serve.start(http_options={"host": "127.0.0.1", "port": port}, **quiet)
        serve.run(application({"bundles": str(bundle), "cpus": 0.5}), **quiet)
        actors = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        yield (
            port,
            {
                what: ray.get(
                    ray.get_actor(next(name for name in actors if mark in name), namespace="serve").__ray_call__.remote(
                        lambda _: os.getpid()
                    )
                )
                for what, mark in (("replica", "SERVE_REPLICA"), ("proxy", "PROXY"))
            },
        )
    finally:
        serve.shutdown()
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
