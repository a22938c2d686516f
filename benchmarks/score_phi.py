"""phi of the score graph against training's own, on held-out replies of the shipped PersRM's training data.

100 replies of the pairs that training measured itself on, and never trained on; T is training's 64 candidates. The
other side is the torch model in fp32 (RewardModel.run_base and forward) with the shipped adapter and feature head. The
fp32 bundle must agree to 1e-4 wherever T is determined: where the base's 64th and 65th likeliest tokens are as good as
tied, rounding decides which of them is in T, and phi is another number. Of the int4 bundle the largest difference is
told, and Spearman's rank correlation, of tokens and of whole replies. What must not agree stands beside it: another
normaliser, the adapter off, and replies shifted by one token. Writes benchmarks/results/score_phi.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common.kept import made
from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, ROOT, versions, write_record
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_export.read.checkpoint import open_checkpoint
from pad_runtime.bundle.manifest import Precision
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.score.request import ReplyScores, RewardPrompt, ScoreRequest
from pad_train.options import TrainingOptions
from pad_train.pairs.pair_file import parse_source, read_pairs
from pad_train.train.backbone import load_backbone
from pad_train.train.example import Example, make_batch, make_examples
from pad_train.train.persrm_folder import RECORD_NAME, read_reward_model
from pad_train.train.reward_model import RewardModel
from pad_train.train.train import split

RECORD = RESULTS / "score_phi.json"
WORK = ROOT / "build" / "score_phi"
DATA = ("demo/training/pairs.jsonl", "demo/training/guided-pairs.jsonl")  # in the order in which it was trained
TOLERANCE = 1e-4
_BATCH = 4  # pairs that torch reads at once
_QUANTILES = (0.5, 0.9, 0.99, 0.999)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Phi:
    """Scores of all replies.

    Attributes:
        tokens: phi of every token, [n, features].
        log_probs: log p_base of every token, [n].
        starts: where each reply begins.
    """

    tokens: Array
    log_probs: Array
    starts: Array

    @property
    def replies(self) -> Array:
        """phi of whole replies, the sums of their tokens': [replies, features]."""
        return np.asarray(np.add.reduceat(self.tokens, self.starts))


def held_out(model: RewardModel, options: TrainingOptions, count: int) -> list[Example]:
    """Pairs of `count` different replies that training kept for measuring, drawn by a seed."""
    pairs, _ = read_pairs([parse_source(str(ROOT / source)) for source in DATA])
    _, measured = split(pairs, options)
    examples, _ = make_examples(
        measured,
        model.backbone,
        model.features,
        max_prompt=options.max_prompt,
        max_reply=options.max_reply,
        seed=options.seed,
    )
    random.Random(0).shuffle(examples)
    chosen: list[Example] = []
    seen: set[tuple[int, ...]] = set()
    for example in examples:
        replies = {tuple(example.prompt + reply) for reply in (example.chosen, example.rejected)}
        if len(replies) == 2 and not replies & seen and len(seen) < count:
            seen |= replies
            chosen.append(example)
    return chosen


@torch.no_grad()
def trained(model: RewardModel, examples: Sequence[Example], top_k: int) -> tuple[Phi, Array]:
    """What training computes, and by how many logits the last candidate of each T is ahead of the next token, [n]."""
    phi, log_probs, margins = [], [], []
    for start in range(0, len(examples), _BATCH):
        some = examples[start : start + _BATCH]
        plain = make_batch(some, plain=True)
        phi.append(model(model.hidden(make_batch(some)), model.run_base(plain, top_k))[..., 0].T)
        with model.trunk.disable_adapter():
            logits = model.backbone.logits(model.hidden(plain))
        own = plain.targets[:, None]
        log_probs.append(logits.log_softmax(-1).gather(1, own)[:, 0])
        last, following = logits.scatter(1, own, torch.inf).topk(top_k + 1).values[:, -2:].unbind(1)
        margins.append(last - following)
    lengths = [len(reply) for example in examples for reply in (example.chosen, example.rejected)]
    found = Phi(np.asarray(torch.cat(phi)), np.asarray(torch.cat(log_probs)), np.cumsum([0, *lengths[:-1]]))
    return found, np.asarray(torch.cat(margins))


@torch.no_grad()
def over_vocabulary(model: RewardModel, examples: Sequence[Example], log_probs: Array) -> Array:
    """phi normalised over the vocabulary, of which neither training nor decoding looks at most: [n, features]."""
    found = []
    for example in examples:
        batch = make_batch([example])
        hidden = model.hidden(batch)
        changed = hidden + hidden @ model.head_change.transpose(1, 2) + model.bias[:, None]  # [d, n, hidden]
        targets = batch.targets.expand(len(changed), -1)[..., None]
        found.append(model.backbone.logits(changed).log_softmax(-1).gather(-1, targets)[..., 0].T)
    return np.asarray(torch.cat(found)) - log_probs[:, None]


def scored(bundle: Path, examples: Sequence[Example], top_k: int) -> tuple[Phi, float]:
    """What the score graph gives, and the seconds that it took."""
    scorer = Bundle(bundle, device="cpu", num_threads=1).scorer()
    requests = [
        ScoreRequest(tuple(example.plain), tuple(reply), (RewardPrompt(0, tuple(example.prompt)),))
        for example in examples
        for reply in (example.chosen, example.rejected)
    ]
    start = time.perf_counter()
    scores: list[ReplyScores] = scorer.score(requests, top_k=top_k)
    seconds = time.perf_counter() - start
    lengths = [len(each.log_probs) for each in scores]
    tokens = np.concatenate([each.phi[0] for each in scores])
    log_probs = np.concatenate([each.log_probs for each in scores])
    return Phi(tokens, log_probs, np.cumsum([0, *lengths[:-1]])), seconds


def compare(given: Phi, expected: Phi, tied: Array, features: Sequence[str]) -> dict[str, Any]:
    """How far phi and log-probabilities differ, and rank correlations by feature; `tied`: where T is not determined."""
    gaps = np.abs(given.tokens - expected.tokens)
    return {
        "largest_difference": float(f"{gaps[~tied].max():.2e}"),
        "largest_difference_tied": float(f"{gaps[tied].max(initial=0.0):.2e}"),
        "difference_quantiles": {str(part): float(f"{np.quantile(gaps, part):.2e}") for part in _QUANTILES},
        "largest_difference_log_prob": float(f"{np.abs(given.log_probs - expected.log_probs).max():.2e}"),
        "mean_log_prob": round(float(given.log_probs.mean()), 4),
        "rank_correlation_tokens": _by_feature(given.tokens, expected.tokens, features),
        "rank_correlation_replies": _by_feature(given.replies, expected.replies, features),
    }


def control(given: Phi, wrong: Array, features: Sequence[str]) -> dict[str, Any]:
    """How far the scores are from what they must not be."""
    gaps = np.abs(given.tokens[: len(wrong)] - wrong)
    return {
        "largest_difference": round(float(gaps.max()), 3),
        "mean_difference": round(float(gaps.mean()), 3),
        "rank_correlation_tokens": _by_feature(given.tokens[: len(wrong)], wrong, features),
    }


def _by_feature(one: Array, other: Array, features: Sequence[str]) -> dict[str, float]:
    return {
        feature: round(float(np.corrcoef(_ranks(one[:, column]), _ranks(other[:, column]))[0, 1]), 5)
        for column, feature in enumerate(features)
    }


def _ranks(values: Array) -> Array:
    """Ranks, those of equal values being their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replies", type=int, default=100)
    count = parser.parse_args().replies
    torch.set_num_threads(1)
    options = TrainingOptions(
        **json.loads((WEIGHTS_PERSRM / RECORD_NAME).read_text(encoding="utf-8"))["trained_with"]["options"]
    )
    base = find_smollm2()
    model = read_reward_model(WEIGHTS_PERSRM, load_backbone(open_checkpoint(base), dtype=torch.float32))
    examples, features, top_k = held_out(model, options, count), model.features, options.candidates
    expected, margins = trained(model, examples, top_k)
    tied = margins < 2 * TOLERANCE  # both sides may round by as much
    vocabulary = over_vocabulary(model, examples, expected.log_probs)
    with model.trunk.disable_adapter():
        bare = trained(model, examples, top_k)[0].tokens
    del model
    bundles: dict[str, Any] = {}
    precisions: tuple[Precision, ...] = ("fp32", "int4")
    for precision in precisions:

        def export(folder: Path, precision: Precision = precision) -> None:
            export_bundle(
                base,
                folder,
                persrms=[WEIGHTS_PERSRM],
                report=print,
                options=ExportOptions(precision=precision, max_length=1024),
            )

        given, seconds = scored(made(WORK / precision, export), examples, top_k)
        bundles[precision] = compare(given, expected, tied, features) | {
            "seconds": round(seconds, 1),
            "controls": {
                "normalised over the vocabulary": control(given, vocabulary, features),
                "the adapter off": control(given, bare, features),
                "shifted by one token": control(given, expected.tokens[1:], features),
            },
        }
        print(precision, json.dumps(bundles[precision], indent=1), flush=True)
    record = {
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "torch", "transformers", "peft"),
        "persrm": str(WEIGHTS_PERSRM.relative_to(ROOT)),
        "replies": len(expected.starts),
        "tokens": len(expected.tokens),
        "tied_tokens": int(tied.sum()),
        "candidates": top_k,
        "tolerance": TOLERANCE,
        "mean_size_of_phi": {
            feature: round(float(np.abs(expected.tokens[:, column]).mean()), 4)
            for column, feature in enumerate(features)
        },
        "bundles": bundles,
    }
    write_record(RECORD, record)
    if bundles["fp32"]["largest_difference"] > TOLERANCE:
        raise SystemExit(f"fp32 differs by {bundles['fp32']['largest_difference']}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
