"""The replies of PAD and its rivals to the questions of one run of the benchmark."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.common.records import ROOT
from benchmarks.quality.generation import CellGenerator
from benchmarks.quality.methods import BASE, Cell, Method
from benchmarks.quality.perplexity import BasePerplexity
from benchmarks.quality.replies import ReplyFile, ReplyStore, complete, is_complete
from benchmarks.quality.rivals.best_of import ScoredSample, best_of, draw_samples
from benchmarks.quality.rivals.costs import TOKENS, request_costs, torch_costs
from benchmarks.quality.rivals.soup import IDENTITY_HEAD, ensure_loras, pairs_of
from benchmarks.quality.rivals.torch_replies import TorchRivals
from benchmarks.quality.rivals.vector import mean_difference, middle_layer
from benchmarks.quality.run import Run
from pad_export.read.checkpoint import open_checkpoint
from pad_rt import GenerationConfig
from pad_train.pairs.pair_file import PairSource, read_pairs
from pad_train.train.backbone import load_backbone

TRAINING = ROOT / "demo" / "training"
SOUP_BETA = 1.0  # a soup of one LoRA is then the policy that was trained
VECTOR_BETA = 4.0
OF_BUNDLE: tuple[Method, ...] = ("prompted", "pad", "persrm")
BEST_OF: Mapping[Method, int] = {"best_of_4": 4, "best_of_8": 8}
IN_TORCH = "torch"  # in place of a PersRM's name


class Contest:
    """The replies of all methods to the questions of one run."""

    def __init__(self, run: Run, arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
        self.run, self.prompts, self._arguments = run, list(prompts), arguments
        self.generator = CellGenerator(run.bundles, run.factors, arguments.ask, 1)
        self.torch = self._load_torch()
        first = run.design.persrms[0]
        run.marks[IN_TORCH] = self._torch_mark()
        self._persrm = first
        self._perplexity = BasePerplexity(run.base, run.bundles[first], arguments.ask)
        self._samples: dict[int, list[list[ScoredSample]]] = {}

    def cell(self, method: Method, weights: Mapping[str, float], *, beta: float | None = None) -> Cell:
        """A method for a user; `base` is the base in torch."""
        if method in OF_BUNDLE:
            return self.run.design.cell(method, weights)
        plain = self.run.design.cell("base", weights)
        if method == "base":
            return replace(plain, persrm=IN_TORCH)
        wanted = tuple(weights.items())
        if method in BEST_OF:
            return replace(plain, method=method, weights=wanted, persrm=self._persrm)
        fixed = {"soup": SOUP_BETA, "vector": VECTOR_BETA}[method]
        return replace(plain, method=method, weights=wanted, persrm=IN_TORCH, beta=beta or fixed)

    def fill(self, cells: Sequence[Cell]) -> ReplyStore:
        """Generate what is missing."""
        questions, number = self._arguments.questions, self._arguments.perplexities
        of_bundle = [cell for cell in cells if cell.persrm != IN_TORCH and cell.method not in BEST_OF]
        self.run.fill(questions, self.run.incomplete(questions, dict.fromkeys(of_bundle, self.prompts)))
        store = self.run.store(questions)
        for at, cell in enumerate(cells, start=1):
            if not is_complete(store, cell, self.prompts, num_perplexities=number):
                generate = self._best_of if cell.method in BEST_OF else self.torch
                perplexity = self._perplexity
                complete(store, cell, self.prompts, num_perplexities=number, generate=generate, perplexity=perplexity)
                print(f"{at:4d}/{len(cells)}  {cell.slug}", flush=True)
        return store

    def configs(self, question: str, max_new_tokens: int) -> list[GenerationConfig]:
        """Of the samples that best of n chooses from: the benchmark's own samples, numbered."""
        sampled = Cell(method="base", max_new_tokens=max_new_tokens)
        number = max(BEST_OF.values())
        return [self.generator.config(replace(sampled, sample=at + 1), question) for at in range(number)]

    def _best_of(self, cell: Cell, questions: Sequence[str]) -> ReplyFile:
        """All users choose from the same samples."""
        cap = cell.max_new_tokens
        if cap not in self._samples:
            configs = [self.configs(question, cap) for question in self.prompts]
            asked = [self._arguments.ask.replace("{x}", question) for question in self.prompts]
            features = list(self.run.design.traits)
            samples = draw_samples(self.generator.generator(cell), asked, features, configs)
            self._samples[cap] = samples
        chosen = dict(zip(self.prompts, self._samples[cap], strict=True))
        replies = [best_of(chosen[question], dict(cell.weights), BEST_OF[cell.method]) for question in questions]
        named = [replace(reply, prompt=question) for reply, question in zip(replies, questions, strict=True)]
        return ReplyFile(tuple(named))

    def _load_torch(self) -> TorchRivals:
        checkpoint = open_checkpoint(self.run.base)
        backbone = load_backbone(checkpoint)
        pairs, _ = read_pairs([PairSource(TRAINING / name) for name in ("pairs.jsonl", "guided-pairs.jsonl")])
        features = list(self.run.design.traits)
        loras = ensure_loras(checkpoint, pairs, features, self._arguments.work / "soup")
        layer = middle_layer(backbone)
        vectors = {name: mean_difference(backbone, pairs_of(pairs, name), name, layer) for name in features}
        return TorchRivals(backbone, loras, vectors, self._arguments.ask)

    def _torch_mark(self) -> str:
        """Fingerprint of base, LoRAs and vectors."""
        digest = hashlib.sha256(json.dumps([self.run.marks[BASE], str(IDENTITY_HEAD)]).encode())
        for name, lora in self.torch.loras.items():
            for module in sorted(lora):
                digest.update(lora[module].b.numpy().tobytes() + lora[module].a.numpy().tobytes())
            digest.update(name.encode() + self.torch.vectors[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- costs --------------------------------------------------------------------------------------------------------

    def costs(self) -> dict[str, dict[str, dict[str, float]]]:
        """In torch a token, in the bundle a whole request."""
        trait, weight = self.run.design.users[0]
        weights = {trait.name: weight}
        question = self.prompts[0]
        in_torch = {name: self.cell(name, weights) for name in ("base", "soup", "vector")}
        requests = {"base": partial(self._ask, self.run.design.cell("base", weights), question)}
        requests |= {name: partial(self._ask, self.cell(name, weights), question) for name in OF_BUNDLE}
        requests |= {name: partial(self._ask_best_of, weights, question, n) for name, n in BEST_OF.items()}
        return {
            "torch": torch_costs(self.torch, in_torch, question),
            "bundle": request_costs(requests, base="base"),
        }

    def _ask(self, cell: Cell, question: str) -> None:
        short = replace(cell, max_new_tokens=TOKENS)
        prompt, preference = self.generator.request(short, question)
        config = self.generator.config(short, question)
        self.generator.generator(short).generate(prompt, preference=preference, config=config)

    def _ask_best_of(self, weights: Mapping[str, float], question: str, n: int) -> None:
        generator = self.generator.generator(self.cell("best_of_8", weights))
        asked = self._arguments.ask.replace("{x}", question)
        configs = self.configs(question, TOKENS)[:n]
        best_of(draw_samples(generator, [asked], list(weights), [configs])[0], weights, n)
