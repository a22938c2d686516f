"""The rows of the table, in the order in which they are measured: what is wanted most comes first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

# device -> the precisions of bundles that it runs
PRECISIONS = {
    "cpu": ("fp32", "fp16", "int4"),
    "cuda": ("fp16", "bf16", "int4"),
    "tensorrt": ("fp16", "int4"),
    "tensorrt-rtx": ("fp16", "int4"),
    "ort-tensorrt": ("fp16",),
    "ort-tensorrt-rtx": ("fp16",),
}
OURS = "pad-rt"
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Job:
    """One measurement: the base alone, and guided, step by step in turn."""

    name: str
    batch: int
    prompt: int


@dataclass(frozen=True)
class Group:
    """Rows that share their weights: one process loads those once.

    Attributes:
        system: who decodes, `OURS` or a peer.
        device: of ours, one of `PRECISIONS`; of a peer "cpu" or "cuda".
        shape, precision: of base and PersRM, see `llama_shapes`.
        topology: of the guided side, "shared" or "pair".
        batches, prompts: sequences at once, and tokens of the base's prompt.
    """

    system: str
    device: str
    shape: str
    precision: str
    topology: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the names of its rows begin with."""
        at = "" if self.system == OURS else f"{self.system}-"
        return f"{at}{self.device}-{self.shape}-{self.precision}-{self.topology}"

    @property
    def rows(self) -> list[Job]:
        """Short prompts and single sequences first."""
        return [
            Job(f"{self.name}-b{batch}-p{prompt}", batch, prompt)
            for prompt, batch in itertools.product(self.prompts, self.batches)
        ]


def gpu_groups(device: str, batches: Sequence[int], prompts: Sequence[int]) -> list[Group]:
    """Of one GPU, what the device runs: the 8B shape first, then other sizes, peers, and last what takes longest."""
    half = "bf16" if device == "cuda" else "fp16"  # of the large shape

    def ours(shape: str, precision: str, topology: str) -> Group:
        return Group(OURS, device, shape, precision, topology, tuple(batches), tuple(prompts))

    def peer(shape: str, precision: str) -> Group:
        return Group(TRANSFORMERS, "cuda", shape, precision, "pair", (batches[0],), (prompts[0],))

    groups = [
        ours("8b", half, "shared"),
        ours("1b", "fp16", "shared"),
        ours("135m", "fp16", "shared"),
        ours("8b", "int4", "shared"),
        peer("1b", "fp16"),
        peer("8b", "bf16"),
        ours("1b", "fp16", "pair"),
        ours("135m", "fp16", "pair"),
        ours("1b", "int4", "shared"),
        ours("135m", "int4", "shared"),
        ours("8b", "int4", "pair"),
        ours("1b", "int4", "pair"),
        ours("135m", "int4", "pair"),
        ours("8b", half, "pair"),
    ]
    return [group for group in groups if group.system != OURS or group.precision in PRECISIONS[device]]


def cpu_groups(batches: Sequence[int], prompts: Sequence[int]) -> list[Group]:
    """The same measurement of a tiny shape, so that it is run wherever the command is."""
    ours = [
        Group(OURS, "cpu", "tiny", precision, topology, tuple(batches), tuple(prompts))
        for precision, topology in (("fp32", "shared"), ("int4", "pair"))
    ]
    return [*ours, Group(TRANSFORMERS, "cpu", "tiny", "fp32", "pair", (batches[0],), (prompts[0],))]
