"""Several people at once against the same requests one after the other: PAD-RT, ONNX Runtime GenAI, llama.cpp.

All sides take turns in one run, on one core where there is one thread. Each person is guided in a way of their own.
Then all but one are served, and a newcomer with a long prompt comes. Writes benchmarks/results/people.json, prints the
tables.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import RowError
from benchmarks.common.records import RESULTS, versions, write_record
from benchmarks.common.settings import Settings
from benchmarks.latency.bundles import bundle, demo_bundle
from benchmarks.latency.peers.process import PeerProcess
from benchmarks.latency.peers.sides import SIDES
from benchmarks.latency.people.figures import describe_newcomer, describe_people, tables
from benchmarks.latency.people.task import Served
from benchmarks.latency.people.workload import LONG_PROMPT_TOKENS, MAX_PEOPLE, PROMPT_TOKENS, make_task
from benchmarks.latency.shapes import BUILD, SMOLLM2
from pad_rt.bench.rounds import turn
from pad_runtime.bundle.manifest import read_manifest

OURS = "pad-rt"
PEERS = ("genai-int4", "llamacpp-q4")
MODELS = (SMOLLM2, "llama-3.2-1b")
_LABELS = {OURS: "PAD-RT, int4"} | {name: SIDES[name].label for name in PEERS}
_CANNOT = {
    "genai-int4": "one LoRA for a whole batch, none of feature weights; prompts of one length; nobody joins a batch",
    "llamacpp-q4": "one LoRA for a whole context, none of feature weights",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--bundle", type=Path, help="an int4 bundle of the one model; exported if not given")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    parser.add_argument("--people", nargs="+", type=int, choices=range(1, MAX_PEOPLE + 1), default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--threads", type=int, default=1, help="1 keeps everything on one core")
    parser.add_argument("--out", type=Path, default=RESULTS / "people.json")
    options = parser.parse_args()
    if options.bundle and len(options.models) > 1:
        parser.error("--bundle is of one model: name it by --models")
    settings = Settings(options.rounds, options.new_tokens, options.threads)
    record = {
        "what": "guided decoding, greedy, k 10, each person with a prompt and feature weights of their own",
        "settings": {**asdict(settings), "pinned_to_one_core": settings.core is not None},
        "prompt_tokens": PROMPT_TOKENS,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy"),
        "cannot": {name: _CANNOT[name] for name in options.peers},
        "models": [_measure(model, options, settings) for model in options.models],
    }
    write_record(options.out, record)
    print(tables(record))


def _measure(model: str, options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """The record of one model."""
    print(model, flush=True)
    folder = options.bundle or _bundle(model, settings)
    record: dict[str, Any] = {"model": model, "left_out": {}}
    with ExitStack() as stack:
        processes: dict[str, PeerProcess] = {}
        for side in (OURS, *options.peers):
            try:
                processes[side] = stack.enter_context(_start(model, side, folder, settings))
            except RowError as error:
                if side == OURS:
                    raise
                record["left_out"][side] = str(error)
                print(f"   {side} left out: {error}", flush=True)
        rounds = _take_turns(processes, options.people, settings)
        record["sides"] = {side: {"label": _LABELS[side], "versions": processes[side].versions} for side in processes}
    for side, taken in rounds.items():
        record["sides"][side]["people"] = describe_people(taken, options.people)
        record["sides"][side]["newcomer"] = describe_newcomer([one["newcomer"] for one in taken])
    return record


def _bundle(model: str, settings: Settings) -> Path:
    if model == SMOLLM2:
        return demo_bundle("int4")
    length = LONG_PROMPT_TOKENS + settings.new_tokens
    return bundle(model, topology="shared", precision="int4", max_length=length)


def _start(model: str, side: str, folder: Path, settings: Settings) -> PeerProcess:
    """Make what a side needs and start it; raises `RowError`."""
    if side == OURS:
        python, module, files = Path(sys.executable), "ours", {"bundle": folder}
    else:
        peer = SIDES[side]
        python, module, files = peer.python(), peer.system, peer.files(model, settings.threads)
    manifest = read_manifest(folder)
    task = make_task(
        folder / manifest.tokenizer.file,
        max_length=manifest.max_length,
        new_tokens=settings.new_tokens,
        threads=settings.threads,
        core=settings.core,
        files=files,
    )
    return PeerProcess(python, f"{__package__}.{module}", task, BUILD / f"people-{model}-{side}.log")


def _take_turns(
    processes: dict[str, PeerProcess], counts: list[int], settings: Settings
) -> dict[str, list[dict[str, Served]]]:
    """Every side's rounds, each with all cases, after one that warms it up."""
    most = max(counts)
    cases = {f"{count} at once": (list(range(count)), False) for count in counts}
    cases |= {f"person {person}": ([person], False) for person in range(most)}
    cases["newcomer"] = (list(range(most - 1)) or [0], True)
    rounds: dict[str, list[dict[str, Served]]] = {side: [] for side in processes}
    for index in range(-1, settings.rounds):
        taken: dict[str, dict[str, Served]] = {side: {} for side in processes}
        for case in turn(list(cases), index):
            people, newcomer = cases[case]
            request = {"people": people, "newcomer": newcomer, "new_tokens": settings.new_tokens}
            for side in turn(list(processes), index):
                taken[side][case] = Served(**processes[side].ask(request))
        if index >= 0:
            for side, one in taken.items():
                rounds[side].append(one)
    return rounds


if __name__ == "__main__":
    main()
