"""What the models of a plan allow: dialects, precisions, and the limits of a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from pad_export.graph.matrix import Storage
from pad_export.options import ExportOptions
from pad_export.plan import Plan
from pad_export.read.spec import SITE_MODULES
from pad_export.weights.blocks import BLOCK_SIZE
from pad_runtime.errors import CheckpointError, OptionError

DEFAULT_MAX_LENGTH = 4096  # or the model's own limit, where that is less: the rotary tables grow with it


@dataclass(frozen=True)
class Limits:
    """The most that a bundle takes at once: tokens of prompt and reply together, sequences, candidates a step."""

    max_length: int
    max_batch: int
    max_top_k: int


def choose_limits(plan: Plan, options: ExportOptions) -> Limits:
    """The limits that are asked for, within what every trunk allows.

    Raises:
        OptionError: one is out of range.
    """
    longest = min(trunk.spec.max_positions for trunk in plan.trunks)
    max_length = min(longest, DEFAULT_MAX_LENGTH) if options.max_length is None else options.max_length
    for option, value, low, high in (
        ("--max-length", max_length, 2, longest),
        ("--max-batch", options.max_batch, 1, 1024),
        ("--max-top-k", options.max_top_k, 1, None),
    ):
        if value < low or (high is not None and value > high):
            raise OptionError(f"{option} {value}", expected=f"{low} to {high}" if high else f"at least {low}")
    return Limits(max_length, options.max_batch, min(options.max_top_k, plan.base.spec.vocab_size))


def check_storage(plan: Plan, storage: Storage) -> None:
    """Hold the models against what a dialect runs and a precision stores.

    ONNX Runtime's GroupQueryAttention rotates 16 numbers at a time, and refuses other heads only when it runs. Blocks
    of 8 bits are its own operators, and all blocks are 32 wide.

    Raises:
        OptionError: a precision that the dialect has not.
        CheckpointError: a model whose sizes do not fit.
    """
    for trunk in plan.trunks:
        if storage.dialect == "ort" and trunk.spec.head_dim % 16:
            raise CheckpointError(
                f"{trunk.checkpoint.path} has head_dim {trunk.spec.head_dim}",
                expected="a multiple of 16 in the ort dialect",
                hint="pass --dialect standard",
            )
    if storage.precision == "int8" and storage.dialect != "ort":
        raise OptionError("--precision int8 with --dialect standard", expected="--precision int4, or --dialect ort")
    for trunk in plan.trunks:
        widths = {trunk.spec.hidden_size, *(trunk.site_sizes(site)[0] for site in SITE_MODULES)}
        for width in sorted(widths):
            if storage.in_blocks and width % BLOCK_SIZE:
                raise CheckpointError(
                    f"{trunk.checkpoint.path} has matrices {width} wide",
                    expected=f"a multiple of {BLOCK_SIZE} at {storage.precision}",
                    hint="pass --precision fp32, fp16 or bf16",
                )
