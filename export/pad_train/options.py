"""Options of training a PersRM."""

from __future__ import annotations

from dataclasses import dataclass

ALL_LINEAR = "all-linear"  # PEFT's word for every linear of the decoder


@dataclass(frozen=True)
class TrainingOptions:
    """All options of a training; the same options on the same data give the same PersRM.

    Attributes:
        rank, alpha: rank and alpha of the LoRA.
        modules: linears that the LoRA changes, by the last part of their names, separated by commas; "all-linear" for
            all. The two that write to the residual stream learn as well as all, at a third of the time in a reward row.
        layers: share of the decoder's layers that the LoRA changes, counted from the last one. The layers below run
            once for all rows with the same prompt.
        beta: scale of the rewards in the loss, named as in DPO; not the beta of decoding.
        calm: weight of the loss term that keeps rewards small where a token says nothing about the preference.
        imitate: weight of the loss term that makes the replies which a person prefers likely in that person's decoding.
            With calm and imitate at 0 the loss is the paper's.
        lr, head_lr: learning rates of the LoRA, and of feature heads and learned feature weights.
        epochs, head_epochs: passes of stage 1 and of stage 2; 0 leaves a stage out.
        batch, accumulate: examples of a batch, and batches of a step.
        candidates: number of tokens over which rewards are normalised at each position.
        max_prompt, max_reply: most tokens of a prompt and of a reply.
        held_out: share of the prompts that is kept for measuring.
        save_steps: steps between checkpoints.
        seed: seed of everything random.
        dtype: type of the frozen weights, "bf16" or "fp32"; "auto": bf16 where the machine multiplies it, else fp32.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: str = "o_proj,down_proj"
    layers: float = 0.33
    beta: float = 0.05
    calm: float = 0.25
    imitate: float = 1.0
    lr: float = 1.2e-3
    head_lr: float = 2e-4
    epochs: float = 1.25
    head_epochs: float = 2.0
    batch: int = 4
    accumulate: int = 1
    candidates: int = 64
    max_prompt: int = 512
    max_reply: int = 256
    held_out: float = 0.1
    save_steps: int = 50
    seed: int = 0
    dtype: str = "auto"
