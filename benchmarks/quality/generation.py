"""Cells into replies, on the bundle; several worker processes of one thread each take cells from one list."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from benchmarks.quality.bundles import MAX_BATCH
from benchmarks.quality.methods import Cell, Method
from benchmarks.quality.perplexity import BasePerplexity
from benchmarks.quality.random_reward import random_weights
from benchmarks.quality.replies import JudgedReply, ReplyFile, ReplyStore, complete
from demo.smollm2 import find_smollm2
from pad_rt import GenerationConfig, Generator
from pad_rt.preference import Preference, PreferenceLike
from pad_rt.text.prompt import Prompt


@dataclass(frozen=True)
class Job:
    """What a worker needs to know beside the cell.

    Attributes:
        bundle, words_bundle: the folder of the one that is asked by weights, and of the one that is asked in words.
        factors: length of the random directions that stand for a feature, (feature, factor).
        template: in which the base is told a preference: of the PersRM that is asked in words.
        store: where replies are kept.
        fingerprint: see `ReplyStore`.
        num_perplexities: see `replies.complete`.
        num_threads: inside one operator.
    """

    bundle: Path
    words_bundle: Path
    factors: tuple[tuple[str, float], ...]
    template: str
    store: Path
    fingerprint: str
    num_perplexities: int
    num_threads: int = 1


class CellGenerator:
    """Replies of any cell."""

    def __init__(self, generator: Generator, words: Generator, factors: Mapping[str, float], template: str) -> None:
        self._generator, self._words, self._factors, self._template = generator, words, factors, template

    def generator(self, method: Method) -> Generator:
        """Of the bundle whose PersRM a method asks."""
        return self._words if method == "pad_words" else self._generator

    def request(self, cell: Cell, prompt: str) -> tuple[Prompt, PreferenceLike]:
        """The prompt and the preference that a cell gives to the generator."""
        weights = dict(cell.weights)
        if cell.method == "base":
            return prompt, None
        if cell.method in ("prompted", "pad_prompted"):  # as base_sees_preference fills it in
            prompted = self._template.replace("{p}", str(cell.text)).replace("{x}", prompt)
            return prompted, Preference(weights=weights) if cell.method == "pad_prompted" else None
        if cell.method == "system":
            return [{"role": "system", "content": str(cell.text)}, {"role": "user", "content": prompt}], None
        if cell.method == "pad_words":
            return prompt, cell.text
        if cell.method == "random":
            return prompt, Preference(weights=random_weights(prompt, weights, self._factors))
        return prompt, Preference(weights=weights)

    def config(self, cell: Cell) -> GenerationConfig:
        """Greedy."""
        settings = {name: getattr(cell, name) for name in ("beta", "top_k", "max_new_tokens", "offer_end")}
        return GenerationConfig.from_mapping(settings | dict(cell.penalties))

    def __call__(self, cell: Cell, prompts: Sequence[str]) -> ReplyFile:
        """Batches of prompts of like length; the replies come in the order of the prompts."""
        replies: dict[int, JudgedReply] = {}
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        started = time.perf_counter()
        for start in range(0, len(order), MAX_BATCH):
            chosen = order[start : start + MAX_BATCH]
            requests = [self.request(cell, prompts[index]) for index in chosen]
            results = self.generator(cell.method).generate_batch(
                [prompt for prompt, _ in requests],
                preferences=[preference for _, preference in requests],
                config=self.config(cell),
            )
            for index, result in zip(chosen, results, strict=True):
                cut = result.finish_reason == "length"
                replies[index] = JudgedReply(prompts[index], result.text, result.token_ids, cut)
        seconds = time.perf_counter() - started
        ordered = tuple(replies[index] for index in range(len(prompts)))
        return ReplyFile(ordered, seconds, sum(reply.num_tokens for reply in ordered) / seconds)


def fill(job: Job, cells: Sequence[tuple[Cell, list[str]]], *, workers: int) -> None:
    """Complete every cell for its prompts, and tell of each."""
    started = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill unwinds as Ctrl-C does
    print(f"{len(cells)} cells to generate, {workers} worker{'s' if workers > 1 else ''}", flush=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_on_interrupt) as pool:
        futures = {pool.submit(fill_cell, job, cell, prompts): cell for cell, prompts in cells}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                file, minutes = future.result(), (time.perf_counter() - started) / 60
                told = f"{len(file.replies)} replies, {file.tokens_per_s:.0f} tokens/s" if file else "was there"
                print(f"{done:4d}/{len(cells)}  {minutes:5.1f} min  {futures[future].slug}: {told}", flush=True)
        except BaseException:
            for worker in active_children():  # or a cell is generated to its end for nobody
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def fill_cell(job: Job, cell: Cell, prompts: list[str]) -> ReplyFile | None:
    """One cell, in a worker."""
    generator, perplexity = _open(job)
    store = ReplyStore(job.store, job.fingerprint)
    number = job.num_perplexities
    return complete(store, cell, prompts, num_perplexities=number, generate=generator, perplexity=perplexity)


@functools.cache
def _open(job: Job) -> tuple[CellGenerator, BasePerplexity]:
    torch.set_num_threads(job.num_threads)
    weights, words = (Generator.load(folder, num_threads=job.num_threads) for folder in (job.bundle, job.words_bundle))
    speak = CellGenerator(weights, words, dict(job.factors), job.template)
    return speak, BasePerplexity(find_smollm2(), job.bundle)


def _end_on_interrupt() -> None:
    """Ctrl-C ends a worker at once and without a traceback; its cell in hand is lost, and no file is half-written."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
