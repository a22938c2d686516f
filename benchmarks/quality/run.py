"""One command's bundles, design and replies."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.bundles import RANDOM_SEED, base_mark, ensure_bundle, ensure_scales, persrm_mark
from benchmarks.quality.design import Design
from benchmarks.quality.estimates import Estimate
from benchmarks.quality.generation import Job, fill
from benchmarks.quality.judges import Judge
from benchmarks.quality.judges.kinship import kinship
from benchmarks.quality.methods import BASE, RANDOM, Cell
from benchmarks.quality.prompts import read_unpaired
from benchmarks.quality.random_reward import factors, write_random_persrm
from benchmarks.quality.replies import JudgedReply, ReplyStore, is_complete
from benchmarks.quality.soundness import Soundness
from benchmarks.quality.traits import load_traits, read_features
from demo.smollm2 import find_smollm2
from pad_export.read.checkpoint import open_checkpoint
from pad_runtime.bundle.manifest import read_manifest
from pad_train.pairs.feature import CONTRAST
from pad_train.pairs.feature import read_features as pair_features
from pad_train.pairs.scorer import load_critic
from pad_train.train.backbone import load_backbone

NUM_CALIBRATION = 24  # questions of the training list, each with a random direction of its own
NUM_SAMPLED = 60  # of them; the base's samples tell how much two sound replies differ


class Run:
    """What one command works on: bundles that are there, a design, and the store of each list of questions."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        work, self.base = arguments.work, arguments.base or find_smollm2()
        self._arguments = arguments
        persrms = {path.resolve().name: path for path in arguments.persrm}
        first = next(iter(persrms))
        base = base_mark(self.base, arguments.precision, arguments.ask)
        self.marks = {name: persrm_mark(path, base) for name, path in persrms.items()}
        self.marks[BASE] = base
        traits = load_traits(read_features(persrms[first]), arguments.wordings)
        random = write_random_persrm(persrms[first], work / "random", seed=RANDOM_SEED)
        self.bundles: dict[str, Path] = {}
        for name, path in persrms.items():
            together = [path, random] if name == first else [path]
            bundle = work / f"bundle-{name}"
            self.bundles[name] = ensure_bundle(self.base, together, arguments.precision, bundle, self.marks[name])
        self.bundles |= {BASE: self.bundles[first], RANDOM: self.bundles[first]}
        chat = read_manifest(self.bundles[first]).tokenizer.chat_template is not None
        self.design = Design(traits, tuple(persrms), arguments.beta, chat)
        asked = [arguments.ask.replace("{x}", question) for question in read_unpaired(NUM_CALIBRATION)]
        scales = work / f"scales-{first}.json"
        self.scales = ensure_scales(self.bundles[first], asked, list(traits), scales, self.marks[first])
        self.factors = factors(self.scales)
        self.marks[RANDOM] = f"{self.marks[first]} {self.factors}"

    def store(self, questions: str) -> ReplyStore:
        return ReplyStore(self._folder(questions), self.marks)

    def number(self, part: str) -> int:
        """Questions of a part."""
        if part in ("main", "sampled", "mixtures"):
            return int(self._arguments.prompts)
        return int(self._arguments.other_prompts if part == "others" else self._arguments.sweep_prompts)

    def missing(self, questions: str, prompts: Sequence[str], parts: Sequence[str]) -> list[tuple[Cell, list[str]]]:
        """Cells of the parts that are not complete, each with its questions."""
        asked: dict[Cell, int] = {}
        for part in parts:
            for cell in self.design.cells(part):
                asked[cell] = max(self.number(part), asked.get(cell, 0))
        return self.incomplete(questions, {cell: prompts[:count] for cell, count in asked.items()})

    def incomplete(self, questions: str, cells: dict[Cell, Sequence[str]]) -> list[tuple[Cell, list[str]]]:
        store, number = self.store(questions), self._arguments.perplexities
        return [
            (cell, list(prompts))
            for cell, prompts in cells.items()
            if not is_complete(store, cell, prompts, num_perplexities=number)
        ]

    def fill(self, questions: str, cells: Sequence[tuple[Cell, list[str]]]) -> None:
        """Generate what is missing."""
        job = Job(
            self.base,
            tuple(self.bundles.items()),
            tuple(self.factors.items()),
            self._arguments.ask,
            self._folder(questions),
            tuple(self.marks.items()),
            self._arguments.perplexities,
        )
        if cells:
            fill(job, cells, workers=self._arguments.workers)

    def soundness(self) -> Soundness:
        """The checks, calibrated on the base's samples at every cap."""
        one, another = (list(itertools.chain(*some)) for some in zip(*self.samples().values(), strict=True))
        return Soundness.calibrate(one, another)

    def kinship(self, judges: Sequence[Judge]) -> dict[str, Estimate]:
        """Of judges and the scorers of the PersRM's pairs, over the base's samples at the lowest cap."""
        features = pair_features(self._arguments.wordings)
        sampled = {name: sampling for name in self.design.traits if (sampling := features[name].sampling)}
        asks_base = any(CONTRAST in dict(sampling.scorer) for sampling in sampled.values())
        backbone = load_backbone(open_checkpoint(self.base)) if asks_base else None
        scorers = {name: load_critic(sampling, backbone).scorer for name, sampling in sampled.items()}
        return kinship(judges, scorers, list(itertools.chain(*self.samples()[self.design.caps[0]])))

    def samples(self) -> dict[int, list[tuple[JudgedReply, ...]]]:
        """By cap, two samples of the base's reply to each of some questions of the training list."""
        prompts = read_unpaired(NUM_SAMPLED)
        cells = {cap: [self.design.base(cap, sample) for sample in (1, 2)] for cap in self.design.caps}
        self.fill("training", self.incomplete("training", dict.fromkeys(itertools.chain(*cells.values()), prompts)))
        store = self.store("training")
        return {cap: [store.load(cell, prompts).replies[:NUM_SAMPLED] for cell in some] for cap, some in cells.items()}

    def _folder(self, questions: str) -> Path:
        folder: Path = self._arguments.work / f"replies-{questions}"
        return folder
