"""The command `pad-train`: preference pairs in, a PersRM out; and `pad-train pairs`, which makes the pairs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pad_runtime.command import run_interruptible, with_extra
from pad_train.pairs.command import make, pairs_parser
from pad_train.train.command import train, train_parser

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "gguf", "tqdm")  # what pad-rt[train] adds


def main(argv: list[str] | None = None) -> int:
    """Run `pad-train` with these arguments (None: the process's own) and give its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # Before torch is loaded: threads that spin while they wait made a busy 2-core machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if arguments[:1] == ["pairs"]:
        return _run("pad-train pairs", pairs_parser(), arguments[1:], make)
    return _run("pad-train", train_parser(), arguments, train)


def _run(
    name: str, parser: argparse.ArgumentParser, words: Sequence[str], command: Callable[[argparse.Namespace], None]
) -> int:
    outputs: list[Path] = []

    def run() -> None:
        arguments = parser.parse_args(words)
        outputs.append(arguments.output)
        with_extra("train", _PACKAGES, lambda: command(arguments))

    def farewell() -> str:
        partial = [output.with_name(output.name + ".partial") for output in outputs]
        kept = [path for path in partial if path.exists()]
        return f"what is done is kept in {kept[0]}; the same command goes on from there" if kept else ""

    return run_interruptible(name, run, farewell=farewell)
