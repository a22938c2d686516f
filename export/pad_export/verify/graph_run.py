"""What a bundle's graphs do: prompts read, some of them in parts, and eight steps of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pad_export.plan import Plan
from pad_export.verify.float32_twin import float32_twin
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows
from pad_runtime.rows.row import Reading
from pad_runtime.rows.sequence import Sampling

NUM_STEPS = 8
_BETA = 1.3  # neither 0 nor 1: every row counts
# (base, reward) prompt lengths of each sequence: one alone, two ragged. Where the reward's is 0, it reads the base's.
_BATCHES = (((5, 9),), ((7, 0), (3, 8)))
_TOP_K = 10


@dataclass
class GraphRun:
    """What a graph did with one batch.

    Attributes:
        plans: rows, readings and prompts of each sequence; every row has one reading.
        tokens: chosen, [step][sequence].
        traces: what was weighed, [step][sequence]; empty for the base alone.
        caches: keys and values [kv_heads, length, head_dim], by (sequence, row, layer).
    """

    plans: list[RowPlan]
    tokens: list[list[int]] = field(default_factory=list)
    traces: list[list[SequenceTrace]] = field(default_factory=list)
    caches: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def readings(self, sequence: int) -> Sequence[Reading]:
        """The readings of a sequence, by row."""
        return sorted(self.plans[sequence].readings, key=lambda reading: reading.row)

    def ids(self, sequence: int, row: int) -> tuple[int, ...]:
        """What a row read: its prompt, and every chosen token but the last."""
        plan = self.plans[sequence]
        return (*plan.prompts[plan.rows[row].prompt], *(tokens[sequence] for tokens in self.tokens[:-1]))


def has_twin(manifest: Manifest) -> bool:
    """Whether ONNX Runtime's CPU provider lacks the bundle's element type, so that its float32 twin runs instead."""
    return manifest.float_type == "bfloat16"


def runnable(folder: Path, manifest: Manifest) -> AbstractContextManager[Path]:
    """The bundle, or its twin for as long as it is needed."""
    return float32_twin(folder, manifest) if has_twin(manifest) else nullcontext(folder)


def run_graph(folder: Path, plan: Plan, *, guided: bool) -> list[GraphRun]:
    """Every batch that the bundle's limits allow, on one graph, whose weights leave memory at the end."""
    bundle = Bundle(folder, low_memory=True)  # export's peak memory is a promise
    decoder = bundle.decoder()
    room = max(1, bundle.manifest.max_length - NUM_STEPS - 1)
    batches = [
        tuple((min(base, room), min(reward, room)) for base, reward in lengths)
        for lengths in _BATCHES
        if len(lengths) <= bundle.manifest.max_batch
    ]
    return [
        _run(decoder, bundle.manifest, _plans(bundle.manifest, plan, lengths, guided), guided) for lengths in batches
    ]


def _plans(manifest: Manifest, plan: Plan, lengths: tuple[tuple[int, int], ...], guided: bool) -> list[RowPlan]:
    """Random prompts, and every PersRM of the bundle at once."""
    generator = torch.Generator().manual_seed(len(lengths))

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(plan.base.spec.vocab_size, (length,), generator=generator).tolist())

    plans = []
    for base, reward in lengths:
        read = prompt(base)
        rewards = [
            Reward(index, tuple(persrm.default_weights), 1.0, prompt(reward) if reward else read)
            for index, persrm in enumerate(manifest.persrms)
        ]
        plans.append(plan_rows(manifest, read, rewards if guided else [], _BETA))
    return plans


def _run(decoder: Decoder, manifest: Manifest, plans: list[RowPlan], guided: bool) -> GraphRun:
    num_tokens = min(NUM_STEPS + 1, manifest.max_length - max(plan.longest for plan in plans))
    sampling = Sampling(top_k=min(manifest.max_top_k, _TOP_K))
    slots = [decoder.open(plan.sequence(sampling), plan.longest + num_tokens) for plan in plans]
    for number, (slot, plan) in enumerate(zip(slots, plans, strict=True)):
        prompts = dict(enumerate(plan.prompts))
        if number or len(plans) == 1:  # in two parts, the second behind the first one's cache
            decoder.read(slot, {prompt: ids[: len(ids) // 2] for prompt, ids in prompts.items()})
            prompts = {prompt: ids[len(ids) // 2 :] for prompt, ids in prompts.items()}
        decoder.read(slot, prompts)
    run = GraphRun(plans)
    for _ in range(num_tokens):
        chosen = decoder.step(slots, trace=guided)
        run.tokens.append(list(chosen.ids))
        if guided:
            run.traces.append(chosen.trace())
    for number, (slot, plan) in enumerate(zip(slots, plans, strict=True)):
        for row, planned in enumerate(plan.rows):
            for layer in range(manifest.trunks[planned.trunk].num_layers):
                key, value = decoder.cache(slot, row, layer)
                run.caches[number, row, layer] = (torch.from_numpy(key).float(), torch.from_numpy(value).float())
        decoder.close(slot)
    return run
