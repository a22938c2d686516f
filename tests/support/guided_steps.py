"""Steps without text around them: a llama with one adapter, and requests of its steps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_runtime.decode.step import GraphStep, StepRequest

from pad_rt import EncodedPrompt, GenerationConfig, Generator
from tests.support.torch_oracle import TorchModel

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


def make_request(
    generator: Generator,
    *sequences: int,
    preference: Any = "x",
    trace: bool = False,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]] = PROMPTS,
    **config: Any,
) -> StepRequest:
    """What the generator would ask of the step."""
    prepared = generator._prepare(
        [EncodedPrompt(*prompts[index]) for index in sequences],
        [preference] * len(sequences),
        GenerationConfig(**{"max_new_tokens": NUM_STEPS + 1, **config}),
        trace=trace,
    )
    return prepared.request


def new_step(generator: Generator) -> GraphStep:
    return generator._bundle.guided_step()


def run(step: GraphStep, request: StepRequest, num_tokens: int = NUM_STEPS) -> list[list[int]]:
    """Ids by sequence."""
    ids = [list(step.prefill(request))]
    ids += [list(step.step()) for _ in range(num_tokens - 1)]
    return [list(sequence) for sequence in zip(*ids, strict=True)]


def addresses(step: GraphStep) -> dict[str, int]:
    """Where every value that is bound lies."""
    found = {name: value.address for name, value in step._values.items()}
    for turn, values in enumerate(step._turns):
        found |= {f"{turn}:{name}": value.address for name, value in values.items()}
    return found | {"next_ids": step._ids.buffer.address, "view": ctypes.addressof(step._take())}
