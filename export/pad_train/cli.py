"""The command `pad-train`: preference pairs in, a PersRM out; and `pad-train pairs`, which makes the pairs."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pad_export.output.disk import check_new
from pad_runtime.command import run_interruptible
from pad_runtime.devices.threads import check_threads
from pad_runtime.errors import OptionError, PadError

if TYPE_CHECKING:
    from pad_train.options import TrainingOptions
    from pad_train.pairs.pair import Pair

_EXTRA = ("torch", "transformers", "peft", "accelerate", "gguf", "tqdm")  # packages that pad-rt[train] adds


def main(argv: list[str] | None = None) -> int:
    """Run `pad-train` with these arguments (None: the process's own) and give its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # Before torch is loaded: threads that spin while they wait made a busy 2-core machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    outputs: list[Path] = []

    def run(
        parser: argparse.ArgumentParser, words: Sequence[str], command: Callable[[argparse.Namespace], None]
    ) -> None:
        options = parser.parse_args(words)
        outputs.append(options.output)
        _with_extra(lambda: command(options))

    def farewell() -> str:
        partial = [output.with_name(output.name + ".partial") for output in outputs]
        kept = [path for path in partial if path.exists()]
        return f"what is done is kept in {kept[0]}; the same command goes on from there" if kept else ""

    if arguments[:1] == ["pairs"]:
        return run_interruptible(
            "pad-train pairs", lambda: run(_pairs_parser(), arguments[1:], _pairs), farewell=farewell
        )
    return run_interruptible("pad-train", lambda: run(_train_parser(), arguments, _train), farewell=farewell)


def _with_extra(command: Callable[[], None]) -> None:
    try:
        command()
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise PadError(f"{error.name} is not installed", hint="pip install 'pad-rt[train]'") from None


def _train(options: argparse.Namespace) -> None:
    _check_new(options.output)
    settings = _training_options(options)
    report = _silent if options.quiet else _report
    pairs = _read_pairs(options.data, report)
    report("loading torch")
    importlib.import_module("accelerate")  # transformers would miss it only after a long preparation
    from pad_export.read.checkpoint import open_checkpoint
    from pad_train.pairs.feature import read_features
    from pad_train.train.example import WORDS, feature_names, with_words
    from pad_train.train.train import train_persrm

    _set_threads(options.threads)
    if options.features is not None:
        described = read_features(options.features)
        unknown = [name for name in feature_names(pairs) if name not in described and name != WORDS]
        _check_described(unknown, described, options.features, "the data speaks")
        pairs = with_words(pairs, described, settings.seed, options.worded)
    checkpoint = open_checkpoint(options.base)
    metrics = train_persrm(
        checkpoint,
        pairs,
        feature_names(pairs),
        options.output,
        settings,
        name=options.name or options.output.resolve().name,
        base_name=options.base_name or str(options.base),
        report=report,
        quiet=options.quiet,
    )
    print(f"wrote {options.output}")
    for key, value in metrics.items():
        if key != "loss":
            label = key.removeprefix("accuracy").removeprefix("_") or "all features"
            print(f"  held-out pairwise accuracy, {label}: {value:.1%}")
    command = ["pad-export", "--base", str(options.base), "--persrm", str(options.output), "-o", "BUNDLE"]
    print(f"try: {shlex.join(command)}")


def _pairs(options: argparse.Namespace) -> None:
    from pad_train.pairs.feature import read_features

    _check_new(options.output)
    if options.replies and options.prompts:
        raise OptionError("--prompts and --replies", expected="one of them: replies are sampled, or given")
    if not options.replies and (options.prompts is None or options.base is None):
        raise OptionError("no prompts to sample replies for", expected="--base and --prompts, or --replies")
    features = read_features(options.features)
    sampled = {name: feature for name, feature in features.items() if feature.sampling is not None}
    if not sampled:
        raise OptionError(f"{options.features} has no feature with a scorer", expected='"sampling": {"scorer": ...}')
    report = _silent if options.quiet else _report
    report("loading torch")
    from pad_train.pairs.make_pairs import make_pairs, plan_tasks, rank_replies
    from pad_train.pairs.scorer import load_scorer

    _set_threads(options.threads)
    scorers = {name: load_scorer(feature.sampling.scorer) for name, feature in sampled.items() if feature.sampling}
    if options.replies:
        from pad_train.pairs.reply_file import read_answers

        answers, lines = read_answers(options.replies)
        for line in lines:
            report(line)
        named = dict.fromkeys(name for answer in answers for reply in answer.replies for name in reply.weights)
        _check_described(
            [name for name in named if name not in sampled], sampled, options.features, "the replies speak"
        )
        counts = rank_replies(answers, list(sampled.values()), scorers, options.output)
    else:
        import torch

        from pad_export.output.stages import Stages
        from pad_export.read.checkpoint import open_checkpoint
        from pad_train.train.backbone import load_backbone

        prompts = _read_prompts(options.prompts)[: options.limit]
        checkpoint = open_checkpoint(options.base)
        backbone = load_backbone(checkpoint, dtype=torch.bfloat16)
        counts = make_pairs(
            backbone,
            plan_tasks(prompts, sampled.values(), batch=options.batch),
            scorers,
            options.output,
            settings={"batch": options.batch, "dtype": "bf16", "base": [checkpoint.path.name, checkpoint.nbytes]},
            seed=options.seed,
            stages=Stages(report, quiet=options.quiet),
        )
    kept = ", ".join(f"{name} {counts.pop(name, 0)}" for name in sampled)
    print(f"wrote {options.output}: pairs by feature: {kept}")
    for reason, count in counts.most_common():
        print(f"  {count} dropped: {reason}")


def _check_described(unknown: Sequence[str], described: Iterable[str], features: Path, what: str) -> None:
    if unknown:
        raise OptionError(
            f"{what} of the feature {unknown[0]}",
            expected=f"one of {', '.join(described)}, those of {features}",
        )


def _read_pairs(arguments: Sequence[str], report: Callable[[str], None]) -> list[Pair]:
    from pad_train.pairs.pair_file import parse_source, read_pairs

    pairs, reports = read_pairs([parse_source(argument) for argument in arguments])
    for entry in reports:
        for line in entry.lines():
            report(line)
    return pairs


def _read_prompts(path: Path) -> list[str]:
    """One prompt a line; blank lines and repetitions are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"--prompts {path} cannot be read ({error})", expected="a text file, one prompt a line"
        ) from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise OptionError(f"--prompts {path} holds no prompt", expected="one a line")
    return prompts


def _training_options(options: argparse.Namespace) -> TrainingOptions:
    from pad_train.options import TrainingOptions

    return TrainingOptions(**{field.name: getattr(options, field.name) for field in fields(TrainingOptions)})


def _check_new(output: Path) -> None:
    check_new(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"-o {output} cannot be written: {error.strerror}", hint="choose another folder") from None


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        check_threads(threads, name="--threads")
        import torch

        torch.set_num_threads(threads)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    del line


def _number(lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    def parse(argument: str) -> float:
        value = float(argument)
        if not lowest <= value <= highest or math.isinf(value):
            raise ValueError
        return value

    parse.__name__ = f"number of at least {lowest:g}" + ("" if math.isinf(highest) else f" and at most {highest:g}")
    return parse


def _count(argument: str) -> int:
    value = int(argument)
    if value < 1:
        raise ValueError
    return value


_count.__name__ = "positive integer"


def _candidates(argument: str) -> int:
    value = int(argument)
    if value < 2:  # one candidate has probability 1, whatever the reward
        raise ValueError
    return value


_candidates.__name__ = "integer from 2"


def _seed(argument: str) -> int:
    value = int(argument)
    if not 0 <= value < 2**32:  # what NumPy takes
        raise ValueError
    return value


_seed.__name__ = "seed from 0 to 2**32 - 1"


def _train_parser() -> argparse.ArgumentParser:
    from pad_train.options import TrainingOptions

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
        type=_number(0.0, 1.0),
        default=0.5,
        help="share of the pairs that --features also puts in words (default %(default)s)",
    )
    parser.add_argument("--name", help="name of the PersRM in a bundle (default: that of the folder)")
    parser.add_argument(
        "--base-name", metavar="NAME", help="what the adapter calls its base (default: --base as given)"
    )
    group = parser.add_argument_group("training")
    real, rate, share = _number(0.0), _number(0.0, 1.0), _number(0.0, 0.9)
    settings: tuple[tuple[str, Callable[[str], object], str, str], ...] = (
        ("rank", _count, "N", "rank of the LoRA"),
        ("alpha", real, "X", "its alpha"),
        ("modules", str, "NAMES", "linears that it changes, such as v_proj,o_proj,down_proj"),
        ("layers", _number(0.0, 1.0), "X", "share of the layers that it changes, counted from the last one"),
        ("beta", real, "X", "scale of the rewards in the loss; not the beta of decoding"),
        ("calm", real, "X", "weight of the term that keeps rewards small where they do not matter"),
        ("imitate", real, "X", "weight of the term that makes the preferred replies likely"),
        ("lr", rate, "X", "learning rate of the LoRA"),
        ("head-lr", rate, "X", "learning rate of the head and w_p"),
        ("epochs", real, "X", "passes of stage 1, LoRA and head"),
        ("head-epochs", real, "X", "passes of stage 2, head and w_p alone"),
        ("batch", _count, "N", "examples of a batch"),
        ("accumulate", _count, "N", "batches of a step"),
        ("candidates", _candidates, "N", "tokens at each position that rewards are normalised over"),
        ("max-prompt", _count, "N", "most tokens of a prompt; longer ones are left out"),
        ("max-reply", _count, "N", "most tokens of a reply; longer ones are cut"),
        ("held-out", share, "X", "share of the prompts kept for measuring"),
        ("save-steps", _count, "N", "steps between checkpoints"),
        ("seed", _seed, "N", "of everything random"),
    )
    for name, kind, metavar, text in settings:
        default = getattr(defaults, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", type=kind, metavar=metavar, default=default, help=f"{text} (default %(default)s)"
        )
    group.add_argument(
        "--dtype", choices=("bf16", "fp32"), default=defaults.dtype, help="of the frozen weights (default %(default)s)"
    )
    _add_common(parser)
    return parser


def _pairs_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pad-train pairs",
        description="Make preference pairs of the base's own replies: sampled with more and with less of each feature, "
        "ranked by its scorer. An interrupted run goes on when the same command is given again.",
        allow_abbrev=False,
    )
    parser.add_argument("--base", metavar="DIR", type=Path, help="Hugging Face model folder, or a .gguf file")
    parser.add_argument(
        "--features",
        metavar="FILE",
        type=Path,
        required=True,
        help="JSON that says how each feature is sampled and scored",
    )
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="text, one prompt a line")
    parser.add_argument(
        "--replies",
        metavar="FILE",
        nargs="+",
        help="JSONL of {prompt, reply, weights of the person that it was made for}, or files of pairs: rank these "
        "replies instead of sampling any",
    )
    parser.add_argument("-o", "--output", metavar="PAIRS", type=Path, required=True, help="JSONL to create")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N prompts")
    parser.add_argument("--batch", type=_count, default=8, help="prompts sampled together (default %(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the sampling (default %(default)s)")
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: torch's own)")
    parser.add_argument("--quiet", action="store_true", help="print nothing on stderr but errors")
