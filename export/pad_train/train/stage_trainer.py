"""A stage of training on transformers' Trainer, with the loss, held-out accuracy, and checkpoints that are complete."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pad_export.output.stages import Progress
from pad_train.options import TrainingOptions
from pad_train.train.example import Example, make_batch
from pad_train.train.loss import bradley_terry, imitation, reply_margins, spread
from pad_train.train.reward_model import BaseLogProbs, RewardModel

_WEIGHTS = "trained.safetensors"
_COMPLETE = "complete"  # file that is written last into a checkpoint


@dataclass(frozen=True)
class Item:
    """An example with what training does not change: the base's log-probabilities and, in stage 2, hidden states."""

    example: Example
    base: BaseLogProbs
    hidden: torch.Tensor | None = None


class StageTrainer(Trainer):  # type: ignore[misc]
    """Trains LoRA and head (stage 1: items without hidden states) or head and w_p alone (stage 2: items with them)."""

    def __init__(
        self,
        model: RewardModel,
        items: Sequence[Item],
        held_out: Sequence[Item],
        folder: Path,
        options: TrainingOptions,
        *,
        epochs: float,
        progress: Progress,
    ) -> None:
        steps = max(1, len(items) // (options.batch * options.accumulate))
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,  # the batches and the base's log-probabilities are on the CPU
            per_device_train_batch_size=options.batch,
            gradient_accumulation_steps=options.accumulate,
            num_train_epochs=epochs,
            learning_rate=options.lr,
            lr_scheduler_type="linear",
            warmup_steps=min(10, steps),
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=max(1, min(10, steps)),
            logging_first_step=True,
            save_steps=options.save_steps,
            save_total_limit=2,
            eval_strategy="epoch",
            seed=options.seed,
            data_seed=options.seed,
            dataloader_num_workers=0,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
        )
        super().__init__(
            model=model, args=arguments, train_dataset=list(items), eval_dataset=list(held_out), data_collator=list
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(progress))
        self.options = options
        self._progress = progress
        self._recent: list[float] = []

    def compute_loss(self, model: RewardModel, inputs: list[Item], return_outputs: bool = False, **_: Any) -> Any:
        """Bradley-Terry on the token-summed rewards, plus the two terms that keep the guided text sound."""
        loss, margins = _judge(model, inputs, self.options)
        self._recent += (margins.detach() > 0).float().tolist()
        return (loss, margins) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and pairwise accuracy on the held-out part, by feature."""
        measured = measure(self.model, self.eval_dataset, self.options)
        if measured:
            self._progress.tell(f"held-out {_in_words(measured)}")
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.model.train()
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log also the accuracy on the batches since the last line."""
        if "loss" in logs and self._recent:
            logs["accuracy"] = round(sum(self._recent) / len(self._recent), 3)
            self._recent = []
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """AdamW over the parameters that train, with separate learning rates for LoRA and feature heads."""
        trainable = {name: p for name, p in self.model.trainable().items() if p.requires_grad}
        lora = [p for name, p in trainable.items() if "lora_" in name]
        other = [p for name, p in trainable.items() if "lora_" not in name]
        groups = [{"params": lora, "lr": self.options.lr}, {"params": other, "lr": self.options.head_lr}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        return self.optimizer

    def _save(self, output_dir: str | None = None, **_: Any) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self.model.trainable().items()}, folder / _WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any, **options: Any) -> None:
        super()._save_checkpoint(model, trial, **options)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / _COMPLETE).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        return model


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Shows the number of steps done, with the loss logged last."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._note = ""

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._progress.begin(state.max_steps, done=state.global_step)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs and "accuracy" in logs:
            self._note = _in_words(logs)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._progress(note=self._note)


def _in_words(metrics: dict[str, float]) -> str:
    """Such as `loss 0.512, accuracy 61.0% (eggs 70.0%, noise 52.0%)`."""
    words = f"loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.1%}"
    parts = [f"{name.removeprefix('accuracy_')} {value:.1%}" for name, value in metrics.items() if "accuracy_" in name]
    return words + (f" ({', '.join(parts)})" if parts else "")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones, left by an interruption or a full disk, are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def load_trained(model: RewardModel, path: Path) -> None:
    """Put saved LoRA factors, head and w_p into a model."""
    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.copy_(saved[name])


def save_trained(model: RewardModel, path: Path) -> None:
    """Write LoRA factors, head and w_p, whole or not at all."""
    staged = path.with_suffix(".new")
    save_file({name: p.detach().contiguous() for name, p in model.trainable().items()}, staged)
    staged.replace(path)


@torch.no_grad()
def measure(model: RewardModel, items: Sequence[Item], options: TrainingOptions) -> dict[str, float]:
    """Loss, and the share of pairs whose chosen reply gets more reward, over all and by feature."""
    model.eval()
    losses: list[tuple[float, int]] = []
    hits: dict[str, list[bool]] = {}
    for begin in range(0, len(items), options.batch):
        part = list(items[begin : begin + options.batch])
        loss, margins = _judge(model, part, options)
        losses.append((float(loss), len(part)))
        for item, margin in zip(part, margins.tolist(), strict=True):
            hits.setdefault(item.example.label, []).append(margin > 0)
    if not losses:
        return {}
    flat = [hit for values in hits.values() for hit in values]
    return {
        "loss": sum(loss * n for loss, n in losses) / len(items),
        "accuracy": sum(flat) / len(flat),
        **{f"accuracy_{label}": sum(values) / len(values) for label, values in sorted(hits.items())},
    }


def _judge(model: RewardModel, items: Sequence[Item], options: TrainingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, a scalar, and R(chosen) - R(rejected) of each item, [b]."""
    batch = make_batch([item.example for item in items])
    base = BaseLogProbs(
        torch.cat([item.base.candidates for item in items]),
        torch.cat([item.base.log_probs for item in items]),
    )
    if items[0].hidden is None:
        hidden = model.hidden(batch)
    else:
        hidden = torch.cat([item.hidden for item in items if item.hidden is not None])
    features = model(hidden, base)  # [d, n, k]
    people = torch.stack(
        [
            model.learned_weights if item.example.weights is None else torch.tensor(item.example.weights)
            for item in items
        ]
    )  # [b, d]
    rewards = torch.einsum("nd,dnk->nk", people[batch.rows], features)
    margins = reply_margins(rewards[:, 0], batch.signs, batch.rows, len(items))
    loss = (
        bradley_terry(margins, options.beta)
        + options.calm * spread(rewards, base.log_probs)
        + options.imitate * imitation(rewards, base.log_probs, batch.signs, batch.imitated)
    )
    return loss, margins
