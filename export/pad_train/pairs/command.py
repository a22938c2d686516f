"""`pad-train pairs`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pad_runtime.command import Report
from pad_runtime.errors import OptionError
from pad_train.arguments import add_common, check_described, positive, prepare_output, seed, set_threads

if TYPE_CHECKING:
    from pad_train.pairs.feature import Feature
    from pad_train.pairs.pair_choice import Answers


def make(arguments: argparse.Namespace) -> None:
    """Make pairs as `pairs_parser`'s arguments say."""
    from pad_train.pairs.feature import read_features

    prepare_output(arguments.output)
    if arguments.replies and arguments.prompts:
        raise OptionError("--prompts and --replies", expected="one of them: replies are sampled, or given")
    if not arguments.replies and (arguments.prompts is None or arguments.base is None):
        raise OptionError("no prompts to sample replies for", expected="--base and --prompts, or --replies")
    features = read_features(arguments.features)
    sampled = {name: feature for name, feature in features.items() if feature.sampling is not None}
    if not sampled:
        raise OptionError(f"{arguments.features} has no feature with a scorer", expected='"sampling": {"scorer": ...}')
    prompts = _read_prompts(arguments.prompts)[: arguments.limit] if arguments.prompts else []
    report: Report = arguments.report
    report("loading torch")

    from pad_export.read.checkpoint import open_checkpoint
    from pad_train.pairs.make_pairs import make_pairs, plan_tasks, rank_replies
    from pad_train.pairs.scorer import load_critic
    from pad_train.train.backbone import load_backbone

    set_threads(arguments.threads)
    checkpoint = open_checkpoint(arguments.base) if arguments.base else None
    backbone = load_backbone(checkpoint) if checkpoint else None
    if backbone and backbone.tokenizer.chat_template is None:
        styled = [name for name, feature in sampled.items() if feature.sampling and feature.sampling.styles]
        if styled:
            raise OptionError(
                f"{arguments.base} has no chat template, and {styled[0]} has styles",
                expected="a chat model, or no styles",
            )
    critics = {name: load_critic(feature.sampling, backbone) for name, feature in sampled.items() if feature.sampling}
    if checkpoint is None or backbone is None or arguments.replies:
        counts = rank_replies(
            _read_replies(arguments, sampled, report), list(sampled.values()), critics, arguments.output
        )
    else:
        from pad_export.output.stages import Stages

        size = {"batch": arguments.batch, "per_prompt": arguments.per_prompt}
        counts = make_pairs(
            backbone,
            plan_tasks(prompts, sampled.values(), **size),
            critics,
            arguments.output,
            settings={**size, "dtype": str(backbone.model.dtype), "base": [checkpoint.path.name, checkpoint.nbytes]},
            seed=arguments.seed,
            stages=Stages(report),
        )
    kept = ", ".join(f"{name} {counts.pop(name, 0)}" for name in sampled)
    print(f"wrote {arguments.output}: pairs by feature: {kept}")
    for reason, count in counts.most_common():
        print(f"  {count} dropped: {reason}")


def _read_replies(arguments: argparse.Namespace, sampled: Mapping[str, Feature], report: Report) -> list[Answers]:
    from pad_train.pairs.reply_file import read_answers

    answers, lines = read_answers(arguments.replies)
    for line in lines:
        report(line)
    named = dict.fromkeys(name for answer in answers for reply in answer.replies for name in reply.weights)
    check_described([name for name in named if name not in sampled], sampled, arguments.features, "the replies speak")
    return answers


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


def pairs_parser() -> argparse.ArgumentParser:
    """The arguments of `pad-train pairs`."""
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
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N prompts")
    parser.add_argument("--batch", type=positive, default=8, help="prompts sampled together (default %(default)s)")
    parser.add_argument(
        "--per-prompt", type=positive, metavar="N", help="features of each prompt, in turn (default: all of them)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling (default %(default)s)")
    add_common(parser)
    return parser
