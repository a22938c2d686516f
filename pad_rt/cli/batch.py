"""`pad batch`: its options and its run."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pad_rt.cli.options import add_bundle
from pad_runtime.command import with_extra
from pad_runtime.devices.choice import DEVICES
from pad_runtime.errors import OptionError

if TYPE_CHECKING:
    from pad_rt.batch.run import Answers


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its options."""
    parser = commands.add_parser("batch", help="answer a file of requests in OpenAI's batch format", allow_abbrev=False)
    parser.set_defaults(run=run)
    add_bundle(parser)
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="requests, one a line")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT.jsonl",
        type=Path,
        required=True,
        help="results, one a line; what is there already is not done again",
    )
    parser.add_argument("--name", metavar="NAME", help="what requests call the bundle (default: its folder)")
    parser.add_argument("--people", metavar="FILE", type=Path, help="JSON file of named people")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=_count,
        default=1024,
        help="most tokens of a reply: a request may ask for no more, and gets them if it does not say (default 1024)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing on stderr but errors")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="DEVICE", default="auto", help=", ".join(DEVICES))
    machine.add_argument(
        "--threads", metavar="N", type=_count, help="CPU threads of each bundle (default: the physical cores)"
    )
    cluster = parser.add_argument_group(
        "cluster", "with --ray; a folder is at the same path on every machine (RAY_ADDRESS names another cluster)"
    )
    cluster.add_argument("--ray", action="store_true", help="answer on a Ray cluster, or begin one on this machine")
    cluster.add_argument(
        "--replicas",
        metavar="N",
        type=_count,
        help="copies of the bundle (default: as many as there is room for)",
    )
    cluster.add_argument("--cpus", metavar="N", type=_amount, default=1.0, help="cores of each replica (default 1)")
    cluster.add_argument("--gpus", metavar="N", type=_amount, default=0.0, help="GPUs of each replica (default 0)")


def run(options: argparse.Namespace) -> None:
    """Answer the lines that are not answered yet."""
    with_extra("ray", ("ray",), lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from pad_rt.batch.lines import read_ids, read_lines
    from pad_rt.batch.progress import Progress
    from pad_rt.batch.results import Results
    from pad_rt.batch.run import run_batch

    ids = read_ids(options.input)
    if options.output.exists() and options.output.samefile(options.input):
        raise OptionError(f"{options.output} as input and output", expected="two files")
    results = Results(options.output, ids)
    try:
        progress = Progress(len(ids), len(results.done), is_quiet=options.quiet)
        if results.done.issuperset(ids):
            progress.close()
        else:
            run_batch(read_lines(options.input), results, _open(options), progress)
    finally:
        results.close()


def _open(options: argparse.Namespace) -> Answers:
    from pad_rt.batch.answerer import Answerer, BatchOptions

    bundle = BatchOptions(
        bundle=options.bundle,
        name=options.name,
        people=options.people,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        threads=options.threads,
    )
    if not options.ray:
        return Answerer(bundle)
    from pad_rt.batch.cluster import Cluster

    if not options.quiet:
        print("pad: connecting to Ray", file=sys.stderr)
    return Cluster(bundle, replicas=options.replicas, cpus=options.cpus, gpus=options.gpus)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected an integer >= 1")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number >= 0")
    return amount
