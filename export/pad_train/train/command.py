"""`pad-train`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pad_runtime.command import Report, take_options
from pad_train.arguments import (
    add_common,
    check_described,
    number,
    positive,
    prepare_output,
    seed,
    set_threads,
    whole,
)
from pad_train.options import TrainingOptions

if TYPE_CHECKING:
    from pad_train.pairs.pair import Pair


def train(arguments: argparse.Namespace) -> None:
    """Train as `train_parser`'s arguments say."""
    prepare_output(arguments.output)
    settings = take_options(TrainingOptions, arguments)
    report: Report = arguments.report
    pairs = _read_pairs(arguments.data, report)
    report("loading torch")
    importlib.import_module("accelerate")  # transformers would miss it only after a long preparation
    from pad_export.read.checkpoint import open_checkpoint
    from pad_train.pairs.feature import read_features
    from pad_train.train.example import WORDS, feature_names, with_words
    from pad_train.train.train import train_persrm

    set_threads(arguments.threads)
    if arguments.features is not None:
        described = read_features(arguments.features)
        unknown = [name for name in feature_names(pairs) if name not in described and name != WORDS]
        check_described(unknown, described, arguments.features, "the data speaks")
        pairs = with_words(pairs, described, settings.seed, arguments.worded)
    checkpoint = open_checkpoint(arguments.base)
    metrics = train_persrm(
        checkpoint,
        pairs,
        feature_names(pairs),
        arguments.output,
        settings,
        name=arguments.name or arguments.output.resolve().name,
        base_name=arguments.base_name or str(arguments.base),
        report=report,
    )
    print(f"wrote {arguments.output}")
    for key, value in metrics.items():
        if key != "loss":
            label = key.removeprefix("accuracy").removeprefix("_") or "all features"
            print(f"  held-out pairwise accuracy, {label}: {value:.1%}")
    command = ["pad-export", "--base", str(arguments.base), "--persrm", str(arguments.output), "-o", "BUNDLE"]
    print(f"try: {shlex.join(command)}")


def _read_pairs(sources: Sequence[str], report: Report) -> list[Pair]:
    from pad_train.pairs.pair_file import parse_source, read_pairs

    pairs, reports = read_pairs([parse_source(argument) for argument in sources])
    for entry in reports:
        for line in entry.lines():
            report(line)
    return pairs


def train_parser() -> argparse.ArgumentParser:
    """The arguments of `pad-train`."""
    defaults = TrainingOptions()
    parser = argparse.ArgumentParser(
        prog="pad-train",
        description="Train a personalized reward model (PersRM) on preference pairs, in two stages. `pad-train pairs` "
        "makes pairs. An interrupted run goes on from its last checkpoint when the same command is given again.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pad-train {version('pad-rt')}")
    parser.add_argument(
        "--base", metavar="DIR", type=Path, required=True, help="Hugging Face model folder, or a .gguf file"
    )
    parser.add_argument(
        "--data",
        metavar="[NAME=]FILE",
        nargs="+",
        required=True,
        help="JSONL of {prompt, chosen, rejected, weights and/or preference}, or the files of HelpSteer2, "
        "PKU-SafeRLHF, Rewards-in-Context, hh-rlhf, UltraFeedback, OneStopEnglish, sentence polarity; "
        "NAME is the feature that a file's chosen replies have more of, where it does not say",
    )
    parser.add_argument("-o", "--output", metavar="ADAPTER", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--features",
        metavar="FILE",
        type=Path,
        help="JSON that words the features; the PersRM then also learns to read words",
    )
    parser.add_argument(
        "--worded",
        metavar="X",
        type=number(0.0, 1.0),
        default=0.5,
        help="share of the pairs that --features also puts in words (default %(default)s)",
    )
    parser.add_argument("--name", help="name of the PersRM in a bundle (default: that of the folder)")
    parser.add_argument(
        "--base-name", metavar="NAME", help="what the adapter calls its base (default: --base as given)"
    )
    group = parser.add_argument_group("training")
    real, rate, share = number(0.0), number(0.0, 1.0), number(0.0, 0.9)
    several = whole("integer from 2", 2)  # one candidate has probability 1, whatever the reward
    settings: tuple[tuple[str, Callable[[str], object], str, str], ...] = (
        ("rank", positive, "N", "rank of the LoRA"),
        ("alpha", real, "X", "its alpha"),
        ("modules", str, "NAMES", "linears that it changes, such as v_proj,o_proj,down_proj"),
        ("layers", number(0.0, 1.0), "X", "share of the layers that it changes, counted from the last one"),
        ("beta", real, "X", "scale of the rewards in the loss; not the beta of decoding"),
        ("calm", real, "X", "weight of the term that keeps rewards small where they do not matter"),
        ("imitate", real, "X", "weight of the term that makes the preferred replies likely"),
        ("lr", rate, "X", "learning rate of the LoRA"),
        ("head-lr", rate, "X", "learning rate of the head and w_p"),
        ("epochs", real, "X", "passes of stage 1, LoRA and head"),
        ("head-epochs", real, "X", "passes of stage 2, head and w_p alone"),
        ("batch", positive, "N", "examples of a batch"),
        ("accumulate", positive, "N", "batches of a step"),
        ("candidates", several, "N", "tokens at each position that rewards are normalised over"),
        ("max-prompt", positive, "N", "most tokens of a prompt; longer ones are left out"),
        ("max-reply", positive, "N", "most tokens of a reply; longer ones are cut"),
        ("held-out", share, "X", "share of the prompts kept for measuring"),
        ("save-steps", positive, "N", "steps between checkpoints"),
        ("seed", seed, "N", "of everything random"),
    )
    for name, kind, metavar, text in settings:
        default = getattr(defaults, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", type=kind, metavar=metavar, default=default, help=f"{text} (default %(default)s)"
        )
    group.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default=defaults.dtype,
        help="of the frozen weights (default %(default)s: bf16 where this machine multiplies it, else fp32)",
    )
    add_common(parser)
    return parser
