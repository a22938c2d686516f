"""transformers as its users make it fast: StaticCache, and on a GPU a step compiled by torch.compile into CUDA graphs.

Guided, base and PersRM are two models (of random weights, with a cache each) that step one after the other, and torch
mixes the logits of the base's top k: transformers' own `generate` with a LogitsProcessor does the same and more around
it. Sides take turns round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.common.llama_shapes import LLAMA_SHAPES
from benchmarks.common.records import versions
from benchmarks.gpu.rows import Job
from benchmarks.gpu.task import GpuTask, measured, serve_rows
from pad_export.read.cache_argument import cache_argument
from pad_rt.bench.rounds import Spread, compare, turn

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOP_K = 10
_BETA = 1.0
_begin_step: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin
_WARMUP = 4  # steps: the first compiles, the next record CUDA graphs


def _compiles(task: GpuTask) -> bool:
    return task.group.device == "cuda"


class _Model:
    """One model with its cache: ids [batch, s] in, logits [batch, vocab] of the last position out."""

    def __init__(self, task: GpuTask, row: Job) -> None:
        group = task.group
        config = LlamaConfig(**LLAMA_SHAPES[group.shape])
        before = torch.get_default_dtype()
        torch.set_default_dtype(_DTYPES[group.precision])
        try:
            with torch.device(group.device):
                self._model: Any = LlamaForCausalLM(config).eval()
        finally:  # a model that does not fit leaves the next row's as it should be
            torch.set_default_dtype(before)
        length = row.prompt + max(task.settings.new_tokens, _WARMUP) + 1
        self._cache = StaticCache(config=config, max_cache_len=length)
        self._read_from = cache_argument(self._cache)
        self._step: Callable[..., Any] = self._forward
        if _compiles(task):
            self._step = torch.compile(self._forward, mode="reduce-overhead", fullgraph=True)

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Forget what came before and read prompts; never compiled, as transformers advises."""
        self._cache.reset()
        return self._forward(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read one more token of each sequence."""
        logits: torch.Tensor = self._step(ids)
        return logits

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=ids, logits_to_keep=1, **self._read_from).logits
        return logits[:, -1]


class _Decoder:
    """Greedy decoding with the base alone, or PAD with both models."""

    def __init__(self, task: GpuTask, row: Job) -> None:
        self._models = [_Model(task, row) for _ in range(2)]
        self._compiled = _compiles(task)
        generator = torch.Generator().manual_seed(0)
        vocabulary = LLAMA_SHAPES[task.group.shape]["vocab_size"]
        prompt = torch.randint(vocabulary, (1, row.prompt), generator=generator)
        self._prompt = prompt.repeat(row.batch, 1).to(task.group.device)

    def decode(self, steps: int, *, guided: bool) -> tuple[float, list[float]]:
        """Seconds of the prefill and of each step, each until the chosen ids are on the host."""
        models = self._models if guided else self._models[:1]
        start = time.perf_counter()
        ids = _choose([model.prefill(self._prompt) for model in models])
        ids.tolist()
        prefill, times = time.perf_counter() - start, []
        for _ in range(steps):
            start = time.perf_counter()
            if self._compiled:
                _begin_step()  # what the last step gave may be overwritten
            ids = _choose([model.step(ids) for model in models])
            ids.tolist()
            times.append(time.perf_counter() - start)
        return prefill, times


def _choose(logits: list[torch.Tensor]) -> torch.Tensor:
    """Next ids [batch, 1] from the base's logits [batch, vocab], or the base's and the PersRM's.

    argmax of z_base + beta * (z_persrm - z_base) over the base's top k.
    """
    if len(logits) == 1:
        return logits[0].argmax(-1, keepdim=True)
    base, candidates = logits[0].topk(_TOP_K)
    mixed = base + _BETA * (logits[1].gather(-1, candidates) - base)
    return candidates.gather(-1, mixed.argmax(-1, keepdim=True))


def measure_peer(task: GpuTask) -> Iterator[dict[str, Any]]:
    """One row after the other; models are made anew for each."""
    torch.set_num_threads(task.settings.threads)
    for row in task.group.rows:
        yield measured(row.name, partial(_measure, task, row))


@torch.no_grad()
def _measure(task: GpuTask, row: Job) -> dict[str, Any]:
    decoder = _Decoder(task, row)
    sides = {"base": False, task.group.topology: True}
    for guided in sides.values():
        decoder.decode(_WARMUP, guided=guided)
    prefills: dict[str, list[float]] = {side: [] for side in sides}
    steps: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(task.settings.rounds):
        for side in turn(list(sides), round_):
            prefill, times = decoder.decode(task.settings.new_tokens, guided=sides[side])
            prefills[side].append(prefill * 1e3)
            steps[side] += [value * 1e3 for value in times]
    return {
        "sides": {
            side: {"step_ms": asdict(Spread.of(steps[side])), "prefill_ms": Spread.of(prefills[side]).p50}
            for side in sides
        },
        "ratio": asdict(compare(steps[task.group.topology], steps["base"])),
        "compiled": _compiles(task),
        "versions": versions("torch", "transformers"),
    }


if __name__ == "__main__":
    serve_rows(measure_peer)
