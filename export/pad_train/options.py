"""What decides how a PersRM is trained."""

from __future__ import annotations

from dataclasses import dataclass

ALL_LINEAR = "all-linear"  # PEFT's word for every linear of the decoder


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides what is trained; the same options on the same data give the same PersRM.

    Attributes:
        rank, alpha: of the LoRA.
        modules: linears that wear it, by the last part of their names, with commas between; "all-linear" for all. The
            two that write to the residual stream learn as well as all, and cost a reward row a third of the time.
        layers: share of the decoder's layers that wear it, counted from the last one. Those below run once for all rows
            that read one prompt.
        beta: scale of the log-ratio in the loss.
        calm: weight of the term that keeps the reward quiet where nothing is at stake.
        imitate: weight of the term that asks each person's decoding to write the reply that the person prefers. With
            both at 0 the loss is the paper's.
        lr, head_lr: learning rates of the LoRA, and of head and w_p.
        epochs, head_epochs: passes of stage 1 and of stage 2; 0 leaves a stage out.
        batch, accumulate: examples of a batch, and batches of one step.
        candidates: the tokens at each position that rewards are normalised over.
        max_prompt, max_reply: tokens.
        held_out: share of the prompts kept for measuring.
        save_steps: steps between checkpoints.
        seed: of everything random.
        dtype: of the frozen weights, "bf16" or "fp32".
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
    dtype: str = "bf16"
