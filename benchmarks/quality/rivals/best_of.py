"""Best of n: of the base's first n samples the one that has most of phi, as the user weighs the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.replies import JudgedReply
from pad_rt import GenerationConfig, Generator, Preference


@dataclass(frozen=True)
class ScoredSample:
    """A reply of the base, with phi of each feature summed over its tokens, the end of the turn among them."""

    reply: JudgedReply
    phi: Mapping[str, float]


def draw_samples(
    generator: Generator,
    questions: Sequence[str],
    features: Sequence[str],
    configs: Sequence[Sequence[GenerationConfig]],
) -> list[list[ScoredSample]]:
    """For each question one sample a configuration.

    Args:
        features: of the PersRM that scores.
        configs: for each question; of one length.
    """
    asked = [(question, config) for question, own in zip(questions, configs, strict=True) for config in own]
    results = generator.generate_batch([question for question, _ in asked], configs=[config for _, config in asked])
    replies = [
        JudgedReply(question, result.text, result.token_ids, result.finish_reason == "length")
        for (question, _), result in zip(asked, results, strict=True)
    ]
    phi = score_samples(generator, replies, features)
    samples = [ScoredSample(reply, own) for reply, own in zip(replies, phi, strict=True)]
    size = len(configs[0])
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def score_samples(
    generator: Generator, replies: Sequence[JudgedReply], features: Sequence[str]
) -> list[Mapping[str, float]]:
    """phi of every reply by feature; 0 for an empty one that was cut."""
    everyone = Preference(weights=dict.fromkeys(features, 1.0))
    phi: dict[int, Mapping[str, float]] = {}
    for ended in (True, False):
        some = [index for index, reply in enumerate(replies) if reply.cut != ended and (ended or reply.token_ids)]
        scores = generator.score_batch(
            [replies[index].prompt for index in some],
            [replies[index].token_ids for index in some],
            [everyone] * len(some),
            ended=ended,
        )
        for index, score in zip(some, scores, strict=True):
            phi[index] = {name: score.features[name] for name in features}
    return [phi.get(index, dict.fromkeys(features, 0.0)) for index in range(len(replies))]


def best_of(samples: Sequence[ScoredSample], weights: Mapping[str, float], n: int) -> JudgedReply:
    """Of the first n samples the one with the highest sum_i w_i phi_i."""

    def reward(sample: ScoredSample) -> float:
        return sum(weight * sample.phi[name] for name, weight in weights.items())

    return max(samples[:n], key=reward).reply
