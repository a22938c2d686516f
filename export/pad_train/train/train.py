"""Two-stage training of a PersRM: pairs in, a folder out that pad-export takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pad_export.output.disk import check_new, disk_errors
from pad_export.output.lock import LOCK_FILE, claimed
from pad_export.output.stages import Stages
from pad_export.read.checkpoint import Checkpoint
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.command import Report, silent
from pad_runtime.errors import DataError, OptionError, PadError
from pad_train.options import TrainingOptions
from pad_train.pairs.pair import Pair
from pad_train.train.backbone import DTYPES, load_backbone, native_dtype
from pad_train.train.example import WORDS, Example, make_batch, make_examples
from pad_train.train.persrm_folder import write_persrm
from pad_train.train.reward_model import BaseLogProbs, RewardModel
from pad_train.train.stage_trainer import (
    Item,
    StageTrainer,
    last_checkpoint,
    load_trained,
    measure,
    save_trained,
)

_STAGE_1 = "stage1.safetensors"  # its result
_SETTINGS = "settings.json"  # settings of the call that began the folder
_GO_ON = "free some and repeat the command: it goes on from its last checkpoint"


def train_persrm(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    features: Sequence[str],
    output: Path,
    options: TrainingOptions,
    *,
    name: str,
    base_name: str,
    report: Report = silent,
) -> dict[str, float]:
    """Train a PersRM and write it to `output`.

    Stage 1 trains LoRA and feature heads, with each person's feature weights as the data gives them; untrained heads
    could not tell d > 1 features apart. Stage 2 freezes the LoRA, and trains feature heads and the learned feature
    weights on the hidden states; where that raises the held-out loss, the result is stage 1's.

    What is done is kept in `output` + ".partial"; the same call goes on from its last checkpoint, exactly. `report` is
    told of the stages, and of their progress where stderr is no terminal.

    Returns:
        Held-out loss and accuracies.

    Raises:
        DataError: no pair is left to train on.
        OptionError: what is in `output` + ".partial" was begun with another base, other settings or other data, or
            another process trains there now.
        CheckpointError: the disk is full or fails, or the base cannot be loaded.
    """
    if options.dtype == "auto":
        options = replace(options, dtype=native_dtype())
    work = output.with_name(output.name + ".partial")
    settings = {
        "options": asdict(options),
        "features": list(features),
        "pairs": _fingerprint(pairs),
        "base": [checkpoint.path.name, checkpoint.nbytes],
    }
    with claimed(work / LOCK_FILE, output):
        _check_settings(work, settings)
        with _tidied(work), disk_errors(output, hint=_GO_ON):
            check_new(output)  # another process may have made the folder meanwhile
            write_whole(work / _SETTINGS, _as_json(settings))
            stages = Stages(report)
            model, items = _prepare(checkpoint, pairs, features, options, stages)
            _train_trunk(model, items["training"], items["held-out"], work, options, stages)
            metrics = _train_head(model, items["training"], items["held-out"], work, options, stages)
            record = {
                "trained_with": {"pad-rt": version("pad-rt"), "options": asdict(options)},
                "held_out": {key: round(value, 4) for key, value in metrics.items()},
                "num_examples": {part: len(some) for part, some in items.items()},
            }
            shutil.rmtree(work / "persrm", ignore_errors=True)  # left by a call that was killed here
            write_persrm(
                work / "persrm",
                model,
                name=name,
                base_name=base_name,
                reads_words=any(pair.preference for pair in pairs),
                record=record,
            )
            check_new(output)
            (work / "persrm").rename(output)
        shutil.rmtree(work)
    return metrics


@contextlib.contextmanager
def _tidied(work: Path) -> Iterator[None]:
    """After an error, remove an incomplete checkpoint, and the folder if it holds no progress."""
    try:
        yield
    except PadError:
        for stage in ("stage1", "stage2"):
            last_checkpoint(work / stage)  # removes incomplete checkpoints
        if {path.name for path in work.iterdir()} <= {_SETTINGS, LOCK_FILE}:  # or it would refuse the corrected command
            shutil.rmtree(work)
        raise


def _prepare(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    features: Sequence[str],
    options: TrainingOptions,
    stages: Stages,
) -> tuple[RewardModel, dict[str, list[Item]]]:
    """The model, and the items for training and for measuring."""
    torch.manual_seed(options.seed)
    backbone = load_backbone(checkpoint, dtype=DTYPES[options.dtype])
    if backbone.tokenizer.chat_template is None:
        stages.tell(
            f"note: {checkpoint.path} has no chat template; prompts are read as plain text, as the runtime will"
        )
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
    train, held_out = split(pairs, options)
    items = {}
    for part, some in (("training", train), ("held-out", held_out)):
        examples, counts = make_examples(
            some, backbone, features, max_prompt=options.max_prompt, max_reply=options.max_reply, seed=options.seed
        )
        for reason, count in sorted(counts.items()):
            stages.tell(f"{part}: {count} with {reason}")
        stages.tell(f"{part}: {len(examples)} examples")
        items[part] = _run_base(model, examples, options, stages)
    if not items["training"]:
        raise DataError("no pair is left to train on", expected="at least one", hint="see the counts above")
    return model, items


def _train_trunk(
    model: RewardModel,
    items: list[Item],
    held_out: list[Item],
    work: Path,
    options: TrainingOptions,
    stages: Stages,
) -> None:
    done = work / _STAGE_1
    if done.exists():
        load_trained(model, done)
        return
    if options.epochs:
        for name, parameter in model.trainable().items():
            parameter.requires_grad_(name != "learned_weights")
        parts = [items, held_out]
        what = f"LoRA and head on {len(items)} examples"
        _run(1, what, model, parts, work / "stage1", options, options.epochs, stages)
    save_trained(model, done)
    shutil.rmtree(work / "stage1", ignore_errors=True)


def _train_head(
    model: RewardModel,
    items: list[Item],
    held_out: list[Item],
    work: Path,
    options: TrainingOptions,
    stages: Stages,
) -> dict[str, float]:
    """Stage 2, unless the held-out loss says that it has learned the pairs by heart; the held-out metrics."""
    before = measure(model, held_out, options)
    if not options.head_epochs:
        return before
    for name, parameter in model.trainable().items():
        parameter.requires_grad_("lora_" not in name)
    frozen = [_with_hidden(model, some, options.batch, stages) for some in (items, held_out)]
    _run(2, "head and w_p", model, frozen, work / "stage2", options, options.head_epochs, stages)
    after = measure(model, held_out, options)
    if not held_out or after["loss"] <= before["loss"]:
        return after
    stages.tell(
        f"stage 2 raised the held-out loss from {before['loss']:.3f} to {after['loss']:.3f}: what stage 1 gave is kept"
    )
    load_trained(model, work / _STAGE_1)
    return before


def _run(
    stage: int,
    what: str,
    model: RewardModel,
    parts: Sequence[list[Item]],
    folder: Path,
    options: TrainingOptions,
    epochs: float,
    stages: Stages,
) -> None:
    """Train on the first part and measure on the second, from the last complete checkpoint on, if there is one."""
    resume = last_checkpoint(folder)
    stages.tell(f"stage {stage}: {what}" + (f", from {resume.name}" if resume else ""))
    with stages.count(f"stage {stage}", "steps") as progress:
        trainer = StageTrainer(model, parts[0], parts[1], folder, options, epochs=epochs, progress=progress)
        with contextlib.redirect_stdout(sys.stderr):  # transformers prints its log to stdout
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _first_weights(features: Sequence[str]) -> torch.Tensor:
    """Initial learned feature weights: `words` alone if the PersRM reads words, else all features alike."""
    if WORDS in features:
        return torch.tensor([float(name == WORDS) for name in features])
    return torch.full((len(features),), 1 / math.sqrt(len(features)))


def split(pairs: Sequence[Pair], options: TrainingOptions) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and pairs to measure on: some prompts, with all their pairs, are held out."""
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


def _run_base(model: RewardModel, examples: Sequence[Example], options: TrainingOptions, stages: Stages) -> list[Item]:
    """Items of examples. The base runs once for every reply, however many examples share it."""
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], BaseLogProbs] = {}
    asked: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    unasked = []
    for example in examples:
        if not asked.issuperset(_replies(example)):
            asked.update(_replies(example))
            unasked.append(example)
    with stages.count("asking the base", "examples") as progress:
        progress.begin(len(unasked))
        for begin in range(0, len(unasked), options.batch):
            some = unasked[begin : begin + options.batch]
            base = model.run_base(make_batch(some, plain=True), options.candidates)
            replies = [reply for example in some for reply in _replies(example)]
            sizes = [len(ids) for _, ids in replies]
            parts = zip(torch.split(base.candidates, sizes), torch.split(base.log_probs, sizes), strict=True)
            for reply, (candidates, log_probs) in zip(replies, parts, strict=True):
                answers.setdefault(reply, BaseLogProbs(candidates.clone(), log_probs.clone()))
            progress(len(some))
    items = []
    for example in examples:
        both = [answers[reply] for reply in _replies(example)]
        candidates = torch.cat([base.candidates for base in both])
        items.append(Item(example, BaseLogProbs(candidates, torch.cat([base.log_probs for base in both]))))
    return items


def _replies(example: Example) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Both replies, chosen first, each with the base's prompt."""
    return [(tuple(example.plain), tuple(reply)) for reply in (example.chosen, example.rejected)]


@torch.no_grad()
def _with_hidden(model: RewardModel, items: Sequence[Item], batch_size: int, stages: Stages) -> list[Item]:
    model.eval()
    done = []
    with stages.count("stage 2: reading hidden states", "examples") as progress:
        progress.begin(len(items))
        for begin in range(0, len(items), batch_size):
            some = items[begin : begin + batch_size]
            hidden = model.hidden(make_batch([item.example for item in some]))
            sizes = [len(item.base.candidates) for item in some]
            parts = torch.split(hidden, sizes)
            done += [replace(item, hidden=part.clone()) for item, part in zip(some, parts, strict=True)]
            progress(len(some))
    return done


def _check_settings(work: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun with other settings."""
    path = work / _SETTINGS
    if path.exists() and path.read_bytes() != _as_json(settings):
        raise OptionError(
            f"{work} was begun with another base, other settings or data",
            hint="use those again, or remove it to begin anew",
        )


def _as_json(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings, indent=1).encode()
