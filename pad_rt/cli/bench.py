"""`pad bench`: its options and its run. No other command imports the benchmark."""

from __future__ import annotations

import argparse
import json
import sys

from pad_rt.bench.report import BenchReport
from pad_rt.bench.steps import Workload
from pad_rt.hub import find_bundle


def add_workload(parser: argparse.ArgumentParser) -> None:
    """The options of a `Workload`."""
    defaults = Workload()
    workload = parser.add_argument_group("workload", "random token ids, batch 1, greedy")
    for option, what in (
        ("prompt-tokens", "tokens of the base's prompt"),
        ("new-tokens", "tokens decoded after each prefill"),
        ("top-k", "candidates that the base proposes for each token"),
        ("rounds", "prefills of each side, base and guided in turn"),
    ):
        default = getattr(defaults, option.replace("-", "_"))
        workload.add_argument(f"--{option}", metavar="N", type=int, default=default, help=f"{what} (default {default})")


def run(options: argparse.Namespace) -> None:
    """Measure, and print what was found."""
    workload = Workload(options.prompt_tokens, options.new_tokens, options.top_k, options.rounds)
    report = BenchReport.measure(
        find_bundle(options.bundle), workload, device=options.device, num_threads=options.threads, report=_show_progress
    )
    print(json.dumps(report.as_dict(), ensure_ascii=False) if options.json else report.as_text())


def _show_progress(stage: str) -> None:
    if sys.stderr.isatty():
        print(f"measuring {stage}", file=sys.stderr)
