"""Slots without text around them: a llama with one adapter, and what slots of its decoders are opened with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_runtime.bundle.manifest import Manifest
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from pad_runtime.rows.sequence import Controls, Sampling, SequenceSpec
from tests.support.torch_oracle import TorchModel

# Of the base and of the reward: ragged, and one of a single token.
PROMPTS = (((5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200)), ((20, 21, 22), (250,)), ((3,), (4, 99, 98, 97)))
NUM_STEPS = 50
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"topology": "shared"},
    "pair": {"topology": "pair"},
    "standard": {"topology": "shared", "dialect": "standard"},
}


@dataclass(frozen=True)
class Models:
    folder: Path
    base: TorchModel
    persrm: TorchModel

    def bundle(self, kind: str) -> Path:
        return self.folder / kind


@dataclass(frozen=True)
class Asked:
    """What a slot is opened with, and reads."""

    sequence: SequenceSpec
    prompts: tuple[tuple[int, ...], ...]
    room: int

    @classmethod
    def of(
        cls, plan: RowPlan, *, new_tokens: int = NUM_STEPS + 1, controls: Controls | None = None, **sampling: Any
    ) -> Asked:
        """A plan, and room for as many tokens behind it."""
        chosen = Sampling(**{"top_k": 10, **sampling})
        return cls(plan.sequence(chosen, controls), plan.prompts, plan.longest + new_tokens)

    def open(self, decoder: Decoder) -> Slot:
        """A slot that has its prompts."""
        slot = decoder.open(self.sequence, self.room)
        decoder.read(slot, dict(enumerate(self.prompts)))
        return slot


def ask(
    manifest: Manifest,
    *numbers: int,
    guided: bool = True,
    beta: float = 1.0,
    seed: int = 0,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]] = PROMPTS,
    **options: Any,
) -> list[Asked]:
    """Some of the prompts, each guided by the first PersRM or plain; the one at place i samples from seed + i."""
    asked = []
    for place, number in enumerate(numbers):
        base, reward = prompts[number]
        rewards = [Reward(0, (1.0,), 1.0, tuple(reward))] if guided else []
        plan = plan_rows(manifest, tuple(base), rewards, beta)
        asked.append(Asked.of(plan, seed=seed + place, **options))
    return asked


def open_slots(decoder: Decoder, asked: Iterable[Asked]) -> list[Slot]:
    """Slots that have their prompts."""
    return [each.open(decoder) for each in asked]


def run(decoder: Decoder, asked: Iterable[Asked], num_tokens: int = NUM_STEPS) -> list[list[int]]:
    """Ids by sequence, of slots that are stepped together and closed again."""
    slots = open_slots(decoder, asked)
    ids = step_together(decoder, slots, num_tokens)
    for slot in slots:
        decoder.close(slot)
    return ids


def step_together(decoder: Decoder, slots: Sequence[Slot], num_tokens: int = NUM_STEPS) -> list[list[int]]:
    """Ids by slot."""
    ids = [list(decoder.step(slots).ids) for _ in range(num_tokens)]
    return [list(sequence) for sequence in zip(*ids, strict=True)]
