"""Two-stage training of a PersRM: pairs in, a folder out that pad-export takes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from pad_export.checkpoint import Checkpoint
from pad_export.persrm.backbone import load_backbone
from pad_export.persrm.example import WORDS, Example, make_batch, make_examples
from pad_export.persrm.options import TrainingOptions
from pad_export.persrm.pair import Pair
from pad_export.persrm.persrm_folder import write_persrm
from pad_export.persrm.reward_model import Reference, RewardModel
from pad_export.persrm.stage_trainer import (
    Item,
    StageTrainer,
    last_checkpoint,
    load_trained,
    measure,
    save_trained,
)
from pad_runtime.errors import CheckpointError, DataError, OptionError, PadError

_SETTINGS = "settings.json"  # of the call that began a folder


def train_persrm(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    features: Sequence[str],
    output: Path,
    options: TrainingOptions,
    *,
    name: str,
    base_name: str,
    report: Callable[[str], None],
    quiet: bool = False,
) -> dict[str, float]:
    """Train a PersRM and write it to `output`.

    Stage 1 trains LoRA and head with each person's w_p as the data gives it; with d > 1 features an untrained head
    could not tell them apart. Stage 2 freezes the backbone with its LoRA, and trains head and w_p on its hidden states.

    What is done is kept in `output` + ".partial"; the same call goes on from its last checkpoint, exactly.

    Returns:
        Held-out loss and accuracies.

    Raises:
        DataError: no pair is left to train on.
        OptionError: what is in `output` + ".partial" was begun with another base, other settings or other data.
        CheckpointError: the disk is full, or the base cannot be loaded.
    """
    work = output.with_name(output.name + ".partial")
    _begin(
        work,
        {
            "options": asdict(options),
            "features": list(features),
            "pairs": _fingerprint(pairs),
            "base": [checkpoint.path.name, checkpoint.nbytes],
        },
    )
    try:
        model, items = _prepare(checkpoint, pairs, features, options, report, quiet)
    except PadError:
        if [path.name for path in work.iterdir()] == [_SETTINGS]:  # or it would refuse the corrected command
            shutil.rmtree(work)
        raise
    try:
        _train_trunk(model, items["training"], items["held-out"], work, options, report, quiet)
        _train_head(model, items["training"], items["held-out"], work, options, report, quiet)
        metrics = measure(model, items["held-out"], options)
        settings = {
            "trained_with": {"pad-rt": version("pad-rt"), "options": asdict(options)},
            "held_out": {key: round(value, 4) for key, value in metrics.items()},
            "num_examples": {part: len(some) for part, some in items.items()},
        }
        shutil.rmtree(work / "persrm", ignore_errors=True)  # of a call that was cut off here
        write_persrm(
            work / "persrm",
            model,
            name=name,
            base_name=base_name,
            reads_words=any(pair.preference for pair in pairs),
            record=settings,
        )
        (work / "persrm").rename(output)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_full_disk(error):
            raise
        last_checkpoint(work / "stage1")  # removes the one that was cut off
        last_checkpoint(work / "stage2")
        raise CheckpointError(
            f"no space left on the disk of {output}",
            hint="free some and repeat the command: it goes on from its last checkpoint",
        ) from None
    shutil.rmtree(work)
    return metrics


def _prepare(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    features: Sequence[str],
    options: TrainingOptions,
    report: Callable[[str], None],
    quiet: bool,
) -> tuple[RewardModel, dict[str, list[Item]]]:
    """The model, and what it is trained and measured on, with the base's answers."""
    torch.manual_seed(options.seed)
    backbone = load_backbone(checkpoint, dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    if backbone.tokenizer.chat_template is None:
        report(f"note: {checkpoint.path} has no chat template; prompts are read as plain text, as the runtime will")
    model = RewardModel(
        backbone,
        features,
        rank=options.rank,
        alpha=options.alpha,
        modules=options.modules,
        layers=options.layers,
    )
    with torch.no_grad():
        model.learned_weights.copy_(_first_weights(features))
    train, held_out = _split(pairs, options)
    items = {}
    for part, some in (("training", train), ("held-out", held_out)):
        examples, counts = make_examples(
            some, backbone, features, max_prompt=options.max_prompt, max_reply=options.max_reply, seed=options.seed
        )
        for reason, count in sorted(counts.items()):
            report(f"{part}: {count} with {reason}")
        report(f"{part}: {len(examples)} examples; asking the base about their replies")
        items[part] = _refer(model, examples, options, quiet)
    if not items["training"]:
        raise DataError("no pair is left to train on", expected="at least one", hint="see the counts above")
    return model, items


def _is_full_disk(error: Exception) -> bool:
    """Whether a file could not be written to its end; safetensors and torch say so in words of their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"(os error {code})" in str(error) for code in (errno.ENOSPC, errno.EDQUOT)) or (
        "inline_container.cc" in str(error) and "unexpected pos" in str(error)
    )


def _train_trunk(
    model: RewardModel,
    items: list[Item],
    held_out: list[Item],
    work: Path,
    options: TrainingOptions,
    report: Callable[[str], None],
    quiet: bool,
) -> None:
    done = work / "stage1.safetensors"
    if done.exists():
        load_trained(model, done)
        return
    if options.epochs:
        for name, parameter in model.trainable().items():
            parameter.requires_grad_(name != "learned_weights")
        stage = work / "stage1"
        trainer = StageTrainer(model, items, held_out, stage, options, epochs=options.epochs, quiet=quiet)
        _run("stage 1", f"LoRA and head on {len(items)} examples", trainer, report)
    save_trained(model, done)
    shutil.rmtree(work / "stage1", ignore_errors=True)


def _train_head(
    model: RewardModel,
    items: list[Item],
    held_out: list[Item],
    work: Path,
    options: TrainingOptions,
    report: Callable[[str], None],
    quiet: bool,
) -> None:
    if options.head_epochs:
        report("stage 2: the backbone is frozen; reading its hidden states")
        for name, parameter in model.trainable().items():
            parameter.requires_grad_("lora_" not in name)
        frozen = [_with_hidden(model, some, options.batch, quiet) for some in (items, held_out)]
        stage = work / "stage2"
        trainer = StageTrainer(model, frozen[0], frozen[1], stage, options, epochs=options.head_epochs, quiet=quiet)
        _run("stage 2", "head and w_p", trainer, report)


def _run(stage: str, what: str, trainer: StageTrainer, report: Callable[[str], None]) -> None:
    """Train from the last whole checkpoint on, if there is one."""
    resume = last_checkpoint(Path(trainer.args.output_dir))
    report(f"{stage}: {what}" + (f", from {resume.name}" if resume else ""))
    with contextlib.redirect_stdout(sys.stderr):  # where transformers prints its log
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    report(_summary(stage, trainer.state.log_history))


def _first_weights(features: Sequence[str]) -> torch.Tensor:
    """w_p of whoever names no weights: `words` alone where the PersRM reads words, else all features alike."""
    if WORDS in features:
        return torch.tensor([float(name == WORDS) for name in features])
    return torch.full((len(features),), 1 / math.sqrt(len(features)))


def _split(pairs: Sequence[Pair], options: TrainingOptions) -> tuple[list[Pair], list[Pair]]:
    """Some prompts, with all their pairs, are held out."""
    prompts = list(dict.fromkeys(pair.conversation for pair in pairs))
    random.Random(options.seed).shuffle(prompts)
    out = (
        set(prompts[: min(len(prompts) - 1, math.ceil(options.held_out * len(prompts)))]) if options.held_out else set()
    )
    return [pair for pair in pairs if pair.conversation not in out], [
        pair for pair in pairs if pair.conversation in out
    ]


def _fingerprint(pairs: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True, default=dict).encode())
    return digest.hexdigest()[:16]


def _refer(model: RewardModel, examples: Sequence[Example], options: TrainingOptions, quiet: bool) -> list[Item]:
    """Ask the base once about every reply to a prompt, in however many examples it stands."""
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], Reference] = {}
    asked: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    unasked = []
    for example in examples:
        if not asked.issuperset(_replies(example)):
            asked.update(_replies(example))
            unasked.append(example)
    for begin in tqdm(range(0, len(unasked), options.batch), disable=quiet, leave=False):
        some = unasked[begin : begin + options.batch]
        reference = model.refer(make_batch(some, plain=True), options.candidates)
        replies = [reply for example in some for reply in _replies(example)]
        sizes = [len(ids) for _, ids in replies]
        parts = zip(torch.split(reference.candidates, sizes), torch.split(reference.log_probs, sizes), strict=True)
        for reply, (candidates, log_probs) in zip(replies, parts, strict=True):
            answers.setdefault(reply, Reference(candidates.clone(), log_probs.clone()))
    items = []
    for example in examples:
        both = [answers[reply] for reply in _replies(example)]
        candidates = torch.cat([reference.candidates for reference in both])
        items.append(Item(example, Reference(candidates, torch.cat([reference.log_probs for reference in both]))))
    return items


def _replies(example: Example) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Both replies, chosen first, each with the prompt as the base reads it."""
    return [(tuple(example.plain), tuple(reply)) for reply in (example.chosen, example.rejected)]


@torch.no_grad()
def _with_hidden(model: RewardModel, items: Sequence[Item], batch_size: int, quiet: bool) -> list[Item]:
    model.eval()
    done = []
    for begin in tqdm(range(0, len(items), batch_size), disable=quiet, leave=False):
        some = items[begin : begin + batch_size]
        hidden = model.hidden(make_batch([item.example for item in some]))
        sizes = [len(item.reference.candidates) for item in some]
        parts = torch.split(hidden, sizes)
        done += [replace(item, hidden=part.clone()) for item, part in zip(some, parts, strict=True)]
    return done


def _summary(stage: str, history: list[dict[str, Any]]) -> str:
    last: dict[str, Any] = next((entry for entry in reversed(history) if "eval_accuracy" in entry), {})
    parts = [f"{key.removeprefix('eval_accuracy_')} {value:.1%}" for key, value in last.items() if "accuracy_" in key]
    return (
        f"{stage}: held-out accuracy {last.get('eval_accuracy', math.nan):.1%} ({', '.join(parts)})"
        if last
        else f"{stage}: done"
    )


def _begin(work: Path, settings: dict[str, Any]) -> None:
    path = work / _SETTINGS
    if not path.exists():
        staged = path.with_suffix(".new")
        try:
            work.mkdir(parents=True, exist_ok=True)
            staged.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        except OSError as error:
            raise OptionError(f"{work} cannot be written: {error.strerror}", hint="choose another folder") from None
        staged.replace(path)
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise OptionError(
            f"{work} was begun with another base, other settings or data",
            hint="use those again, or remove it to begin anew",
        )
