"""Does generalised policy improvement beat the linear mix for users who want several traits at once?

In plain torch, greedy, with the shipped PersRM, on questions of the training list that no pair was made of: the result
decides what is built, so it is not found on the unseen ones. Ways to pick among the base's top k are the linear mix,
the best trained corner for each user (chosen on the questions that values were fitted on, and in hindsight), and the
maximum over a bank of readings, by advantage alone and with two values added back (see `ways`). Writes
benchmarks/results/policy_improvement.json and prints a table.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, versions, write_dense
from benchmarks.quality.judges import Judge, load_judges
from benchmarks.quality.methods import ABOUT_ENDING, BETA, TOP_K
from benchmarks.quality.policy_improvement.bank import (
    BASE,
    MIXTURES,
    WANTED,
    Direction,
    Utility,
    Values,
    corners,
    directions,
    estimate_values,
    measure_scales,
    vector,
)
from benchmarks.quality.policy_improvement.figures import rows_of_ways
from benchmarks.quality.policy_improvement.guided_decoding import Scoring
from benchmarks.quality.policy_improvement.replies import Asked, GuidedReply, make_replies
from benchmarks.quality.policy_improvement.value import Predicted
from benchmarks.quality.policy_improvement.ways import BestReading, LinearMix, NoValue, Summed, gains
from benchmarks.quality.prompts import read_unpaired
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.traits import load_traits
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.read.checkpoint import open_checkpoint
from pad_train.train.backbone import load_backbone
from pad_train.train.persrm_folder import read_reward_model
from pad_train.train.reward_model import RewardModel

NUM_EXAMPLES = 4  # questions whose replies are in the record
_PACKAGES = ("pad-rt", "numpy", "torch", "transformers", "peft", "textstat", "vaderSentiment")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=24, help="that the ways are compared on")
    parser.add_argument("--fit-questions", type=int, default=32, help="others, that values and corners are chosen on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


class Experiment:
    """The PersRM, the questions and the bank."""

    def __init__(self, model: RewardModel, asked: Sequence[str], judges: Sequence[Judge]) -> None:
        self.model, self.asked = model, list(asked)
        self.features = model.features
        self.judges = {name: next(judge for judge in judges if judge.feature == name) for name in WANTED}
        self.caps = {name: trait.max_new_tokens for name, trait in load_traits(WANTED).items()}
        self.longest = max(self.caps.values())
        self.bank = directions(WANTED)
        self.matrix = torch.tensor([vector(direction, self.features) for direction in self.bank])  # [J, d]

    def follow(self, directions_: Sequence[Direction], questions: Sequence[str]) -> dict[Direction, list[GuidedReply]]:
        """Replies of the linear mix for each direction, to every question, up to the largest cap."""
        wanted = [
            Asked(question, vector(direction, self.features), _offers_end(dict(direction)), self.longest)
            for direction in directions_
            for question in questions
        ]
        made = make_replies(self.model, wanted, partial(LinearMix, beta=BETA), top_k=TOP_K)
        size = len(questions)
        return {direction: made[at * size : (at + 1) * size] for at, direction in enumerate(directions_)}

    def answer(self, mixtures: Sequence[Mapping[str, float]], scoring: Any) -> list[GuidedReply]:
        """Replies of a way to every question of every user, questions first."""
        wanted = [
            Asked(question, vector(tuple(mixture.items()), self.features), _offers_end(mixture), self.cap(mixture))
            for question in self.asked
            for mixture in mixtures
        ]
        return make_replies(self.model, wanted, scoring, top_k=TOP_K)

    def cap(self, mixture: Mapping[str, float]) -> int:
        """Most tokens of a user's replies."""
        return max(self.caps[name] for name in mixture)

    def first(self, reply: GuidedReply, mixture: Mapping[str, float]) -> JudgedReply:
        """A reply of the largest cap as the user's own cap would have cut it."""
        tokenizer = self.model.backbone.tokenizer
        return reply.first(self.cap(mixture), lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))

    def scorings(self, values: Values) -> dict[str, Any]:
        """The ways that are made token by token: weights of a batch [n, d] -> `Scoring`."""
        coefficients = values.coefficients(self.bank, self.features)
        nats = torch.tensor([values.nats.get(name, 0.0) for name in self.features])

        def summed(weights: torch.Tensor) -> Scoring:
            return BestReading(weights, self.matrix, Summed(gains(weights, self.matrix)), beta=BETA)

        def predicted(weights: torch.Tensor) -> Scoring:
            value = Predicted(coefficients, nats, weights, cap=self.longest)
            return BestReading(weights, self.matrix, value, beta=BETA)

        return {
            "linear": partial(LinearMix, beta=BETA),
            "max": lambda weights: BestReading(weights, self.matrix, NoValue(), beta=BETA),
            "max, summed value": summed,
            "max, predicted value": predicted,
        }


def _offers_end(weights: Mapping[str, float]) -> bool:
    return any(name in ABOUT_ENDING for name in weights)


def best_corners(
    utility: Utility,
    replies: Mapping[Direction, Sequence[GuidedReply]],
    mixtures: Sequence[Mapping[str, float]],
    experiment: Experiment,
) -> list[Direction]:
    """For each user the corner whose replies have the highest mean utility."""
    return [
        max(
            corners(WANTED),
            key=lambda corner: utility(wanted, [experiment.first(one, wanted) for one in replies[corner]]).mean(),
        )
        for wanted in mixtures
    ]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    model = read_reward_model(WEIGHTS_PERSRM, load_backbone(open_checkpoint(find_smollm2()), dtype=dtype))
    questions = read_unpaired(arguments.questions + arguments.fit_questions)
    asked, fitted = questions[: arguments.questions], questions[arguments.questions :]
    experiment = Experiment(model, asked, load_judges())
    started = time.perf_counter()

    def tell(what: str) -> None:
        print(f"{(time.perf_counter() - started) / 60:5.1f} min  {what}", flush=True)

    of_bank = experiment.follow([BASE, *experiment.bank], fitted)
    tell(f"{len(of_bank)} readings on {len(fitted)} questions")
    utility = Utility(experiment.judges, measure_scales(experiment.judges, of_bank))
    values = estimate_values(utility, of_bank, experiment.features, cap=experiment.longest)
    tell("values")
    at_corners = experiment.follow([BASE, *corners(WANTED)], asked)
    chosen = {
        "corner": best_corners(utility, of_bank, MIXTURES, experiment),
        "corner, in hindsight": best_corners(utility, at_corners, MIXTURES, experiment),
    }
    tell("corners")
    replies: dict[str, list[JudgedReply]] = {}  # questions first
    followed: dict[str, list[Direction]] = {"base": [BASE] * len(MIXTURES), **chosen}
    for name, best in followed.items():
        replies[name] = [
            experiment.first(at_corners[direction][index], mixture)
            for index in range(len(asked))
            for mixture, direction in zip(MIXTURES, best, strict=True)
        ]
    for name, scoring in experiment.scorings(values).items():
        replies[name] = [one.reply for one in experiment.answer(MIXTURES, scoring)]
        tell(name)
    utilities = {
        name: np.stack(
            [utility(mixture, made[at :: len(MIXTURES)]) for at, mixture in enumerate(MIXTURES)], axis=-1
        )  # [questions, users]
        for name, made in replies.items()
    }
    rows = rows_of_ways(utilities, replies, base="base", reference="linear")
    record = {
        "what": f"SmolLM2-135M-Instruct and its PersRM in torch, {arguments.dtype}, greedy: ways to pick for a mixture",
        "settings": {
            "questions": len(asked),
            "fit_questions": len(fitted),
            "of": "the training list, in no pair",
            "beta": BETA,
            "top_k": TOP_K,
            "offer_end": list(ABOUT_ENDING),
            "max_new_tokens": experiment.caps,
            "mixtures": [_rounded(mixture) for mixture in MIXTURES],
            "bank": [_rounded(dict(direction)) for direction in experiment.bank],
            "utility": "sum_i w_i s_i / |w|, s_i the judge's score over its standard deviation in `scales`",
            "regret": "mean over users of the best way's mean utility less this way's; hindsight is one of the ways",
            "interval": "95 %, percentile bootstrap over questions, 4000 resamples",
        },
        "judges": {name: judge.name for name, judge in experiment.judges.items()},
        "scales": {name: round(scale, 4) for name, scale in utility.scales.items()},
        "values": {
            "nats_a_standard_deviation": {name: round(value, 2) for name, value in values.nats.items()},
            "explained_variance": [
                {
                    "reading": _rounded(dict(direction)),
                    **{name: round(values.fits[direction, name].explained, 3) for name in WANTED},
                }
                for direction in experiment.bank
            ],
        },
        "rows": rows,
        "users": [
            {
                "weights": _rounded(mixture),
                "utility": {name: round(float(some[:, at].mean()), 3) for name, some in utilities.items()},
                "corner": dict(chosen["corner"][at]),
                "corner_in_hindsight": dict(chosen["corner, in hindsight"][at]),
            }
            for at, mixture in enumerate(MIXTURES)
        ],
        "replies": [
            {
                "question": question,
                "weights": _rounded(MIXTURES[2]),
                **{name: made[index * len(MIXTURES) + 2].text for name, made in replies.items()},
            }
            for index, question in enumerate(asked[:NUM_EXAMPLES])
        ],
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES),
    }
    write_dense(arguments.results / "policy_improvement.json", record)
    print(table(rows))


def _rounded(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: round(weight, 4) for name, weight in weights.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The record's rows as markdown."""
    head = [
        "way",
        "utility",
        "regret",
        "over the linear mix, %",
        "over the base, %",
        "perplexity",
        "repeats, %",
        "tokens",
    ]
    lines = [
        [
            str(row["way"]),
            _spread(row["utility"]),
            _spread(row["regret"]),
            _spread(row["win_over_reference"], percent=True),
            _spread(row["win_over_base"], percent=True),
            f"{row['perplexity_ratio']:.2f}x",
            f"{100 * row['repeats']:.0f}",
            f"{row['tokens']:.0f}",
        ]
        for row in rows
    ]
    return markdown(head, lines)


def _spread(values: Sequence[float], *, percent: bool = False) -> str:
    value, low, high = ((f"{100 * each:.0f}" if percent else f"{each:.2f}") for each in values)
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
