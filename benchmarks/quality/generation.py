"""Cells into replies, on the bundle; several worker processes of one thread each take cells from one list."""

from __future__ import annotations

import functools
import hashlib
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from benchmarks.quality.methods import BASE, TEMPERATURE, Cell
from benchmarks.quality.perplexity import BasePerplexity
from benchmarks.quality.random_reward import random_weights
from benchmarks.quality.replies import JudgedReply, ReplyFile, ReplyStore, complete
from pad_export.read.persrm import PROMPT_TEMPLATE
from pad_rt import GenerationConfig, Generator
from pad_rt.preference import Preference, PreferenceLike
from pad_rt.text.prompt import Prompt


@dataclass(frozen=True)
class Job:
    """What a worker needs to know beside the cell.

    Attributes:
        base: the base's checkpoint.
        bundles: the bundle's folder for each `Cell.persrm`, in pairs.
        factors: length of the random directions that stand for a feature, (feature, factor).
        ask: text that a question is put in, with a place {x}: of use to a base without a chat template.
        store: folder where replies are kept.
        marks: see `ReplyStore`, in pairs.
        num_perplexities: see `replies.complete`.
        num_threads: inside one operator.
    """

    base: Path
    bundles: tuple[tuple[str, Path], ...]
    factors: tuple[tuple[str, float], ...]
    ask: str
    store: Path
    marks: tuple[tuple[str, str], ...]
    num_perplexities: int
    num_threads: int = 1


class CellGenerator:
    """Replies of any cell.

    Args:
        bundles, factors, ask, num_threads: see `Job`; a bundle is loaded when a cell first needs it.
    """

    def __init__(
        self, bundles: Mapping[str, Path], factors: Mapping[str, float], ask: str, num_threads: int | None = None
    ) -> None:
        self._bundles, self._factors, self._ask = bundles, factors, ask
        self._num_threads = num_threads
        self._loaded: dict[Path, Generator] = {}

    def generator(self, cell: Cell) -> Generator:
        """Of the bundle with the cell's PersRM."""
        folder = self._bundles[cell.persrm]
        if folder not in self._loaded:
            self._loaded[folder] = Generator.load(folder, num_threads=self._num_threads)
        return self._loaded[folder]

    def request(self, cell: Cell, question: str) -> tuple[Prompt, PreferenceLike]:
        """The prompt and the preference that a cell gives to the generator."""
        weights, prompt = dict(cell.weights), self._ask.replace("{x}", question)
        if cell.method == "base":
            return prompt, None
        if cell.method in ("prompted", "pad_prompted"):  # as base_sees_preference fills it in
            prompted = PROMPT_TEMPLATE.replace("{p}", str(cell.text)).replace("{x}", prompt)
            return prompted, Preference(weights=weights) if cell.method == "pad_prompted" else None
        if cell.method == "system":
            return [{"role": "system", "content": str(cell.text)}, {"role": "user", "content": prompt}], None
        if cell.method == "random":
            return prompt, Preference(weights=random_weights(question, weights, self._factors))
        return prompt, Preference(weights=weights)

    def config(self, cell: Cell, question: str) -> GenerationConfig:
        """Greedy, or a sample whose seed hangs on the question alone."""
        settings = {name: getattr(cell, name) for name in ("beta", "top_k", "max_new_tokens", "offer_end")}
        if cell.sample:
            seed = int.from_bytes(hashlib.sha256(f"{cell.sample} {question}".encode()).digest()[:4])
            settings |= {"temperature": TEMPERATURE, "seed": seed}
        return GenerationConfig.from_mapping(settings | dict(cell.penalties))

    def __call__(self, cell: Cell, questions: Sequence[str]) -> ReplyFile:
        """Replies in the order of the questions."""
        requests = [self.request(cell, question) for question in questions]
        generator = self.generator(cell)
        started = time.perf_counter()
        results = generator.generate_batch(
            [prompt for prompt, _ in requests],
            preferences=[preference for _, preference in requests],
            configs=[self.config(cell, question) for question in questions],
        )
        seconds = time.perf_counter() - started
        replies = tuple(
            JudgedReply(question, result.text, result.token_ids, result.finish_reason == "length")
            for question, result in zip(questions, results, strict=True)
        )
        return ReplyFile(replies, seconds, sum(reply.num_tokens for reply in replies) / seconds)


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
    store = ReplyStore(job.store, dict(job.marks))
    number = job.num_perplexities
    return complete(store, cell, prompts, num_perplexities=number, generate=generator, perplexity=perplexity)


@functools.cache
def _open(job: Job) -> tuple[CellGenerator, BasePerplexity]:
    torch.set_num_threads(job.num_threads)
    bundles = dict(job.bundles)
    generator = CellGenerator(bundles, dict(job.factors), job.ask, job.num_threads)
    return generator, BasePerplexity(job.base, bundles[BASE], job.ask)


def _end_on_interrupt() -> None:
    """Ctrl-C ends a worker at once and without a traceback; its cell in hand is lost, and no file is half-written."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
