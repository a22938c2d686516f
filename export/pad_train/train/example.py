"""Preference pairs as token ids, and batches in which both replies follow one copy of their prompt."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pad_runtime.errors import DataError
from pad_train.pairs.feature import Feature
from pad_train.pairs.pair import Pair
from pad_train.train.backbone import Backbone

WORDS = "words"  # the feature of preferences in words


@dataclass(frozen=True)
class Example:
    """A comparison: a person prefers one of two replies.

    Attributes:
        plain: ids of the base's prompt.
        prompt: ids of the PersRM's prompt, with the words of the preference, if any.
        chosen, rejected: ids of the replies.
        weights: feature weights, [d]; None for those that are learned.
        label: name under which the example's accuracy is counted.
        imitated: whether the chosen reply is what the person wants most, and the rejected one what the opposite person
            wants most.
    """

    plain: list[int]
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weights: tuple[float, ...] | None
    label: str
    imitated: tuple[bool, bool] = (True, True)


@dataclass(frozen=True)
class TrainingBatch:
    """Examples side by side. Both replies follow one copy of their prompt, and do not attend to each other.

    Attributes:
        ids, positions: [b, width].
        sees: [b, width, width], whether position i attends to position j.
        rows, sources: [n], example and position of the hidden state before each reply token.
        targets: [n], the reply tokens.
        signs: [n], +1 in a chosen reply, -1 in a rejected one.
        imitated: [n], whether the token is of an imitated reply.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    rows: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    signs: torch.Tensor
    imitated: torch.Tensor


def feature_names(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The features of the pairs, in order of appearance; `words` last, if a pair has a preference in words alone."""
    names = dict.fromkeys(name for pair in pairs for name in (*pair.weights, *pair.margins))
    if any(pair.preference and not pair.weights for pair in pairs) or not names:
        names[WORDS] = None
    return tuple(names)


def with_words(pairs: Sequence[Pair], features: Mapping[str, Feature], seed: int, share: float = 1.0) -> list[Pair]:
    """Add pairs with preferences in words.

    Each pair with the weight of a single feature gives a second pair without weights, whose preference is one of the
    feature's wordings: one for more with the same chosen reply, or one for less with the replies swapped. At most
    `share` times the number of given pairs are added, drawn at random.
    """
    rng, spoken = random.Random(seed), []
    for pair in pairs:
        name = next(iter(pair.weights), "")
        if pair.preference or len(pair.weights) != 1 or name not in features:
            continue
        more = pair if pair.weights[name] > 0 else swapped(pair)
        feature = features[name]
        sides = [(more, feature.more), (swapped(more), feature.less)]
        rng.shuffle(sides)
        for side, wordings in sides:
            if wordings:
                spoken.append(replace(side, weights={}, preference=rng.choice(wordings)))
                break
    if share < 1:
        random.Random(seed + 1).shuffle(spoken)
    return [*pairs, *spoken[: int(share * len(pairs))]]


def swapped(pair: Pair) -> Pair:
    """The pair of the opposite person: replies swapped, weights and margins negated."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        weights={name: -weight for name, weight in pair.weights.items()},
        margins={name: -margin for name, margin in pair.margins.items()},
        chosen_finished=pair.rejected_finished,
        rejected_finished=pair.chosen_finished,
    )


def make_examples(
    pairs: Sequence[Pair], backbone: Backbone, features: Sequence[str], *, max_prompt: int, max_reply: int, seed: int
) -> tuple[list[Example], Counter[str]]:
    """Encode pairs, and draw persons for pairs with margins.

    Margins give one person for each feature in which the replies differ, and one for a random mixture of these. For the
    mixture, margins are measured in units of their standard deviation over all pairs.

    Returns:
        The examples, and the numbers of pairs left out and of replies cut, by reason.
    """
    rng, counts = random.Random(seed), Counter[str]()
    scale, between = _margin_scale(pairs), _between(pairs)
    examples = []
    for pair in pairs:
        if backbone.tokenizer.chat_template is None and len(pair.messages) > 1:
            counts["several turns for a base without a chat template, left out"] += 1
            continue
        try:
            plain = backbone.encode_prompt(pair.messages)
            prompt = plain if pair.preference is None else backbone.encode_prompt(pair.messages, pair.preference)
        except DataError as error:
            counts[f"{error.given}, left out"] += 1
            continue
        if max(len(plain), len(prompt)) > max_prompt:
            counts[f"a prompt of more than {max_prompt} tokens, left out"] += 1
            continue
        replies = []
        for text, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished)):
            ids = backbone.encode_reply(text, finished=finished)
            counts[f"a reply of more than {max_reply} tokens, cut"] += len(ids) > max_reply
            replies.append(ids[:max_reply])
        if replies[0] == replies[1]:
            counts["replies that are the same once cut, left out"] += 1
            continue
        people = _people(pair, features, scale, rng)
        counts["margins that are all zero, left out"] += not people
        extreme = [(pair.conversation, text) not in between for text in (pair.chosen, pair.rejected)]
        for weights, label in people:
            # The opposite of a preference in words is unknown, so its rejected reply is not imitated.
            imitated = (extreme[0], extreme[1] and weights is not None and pair.preference is None)
            examples.append(Example(plain, prompt, replies[0], replies[1], weights, label, imitated))
    return examples, +counts


def _between(pairs: Sequence[Pair]) -> set[tuple[str, str]]:
    """Replies that the data both prefer and reject for the same person, with their conversation: never imitated."""
    sides: tuple[set[tuple[str, str, str]], ...] = (set(), set())  # preferred, rejected
    for pair in pairs:
        weights = sorted(pair.weights.items())
        more = swapped(pair) if weights and weights[0][1] < 0 else pair  # the opposite person is counted as the same
        person = json.dumps([pair.preference, *sorted(more.weights.items())])
        for side, text in zip(sides, (more.chosen, more.rejected), strict=True):
            side.add((pair.conversation, person, text))
    return {(conversation, text) for conversation, _, text in sides[0] & sides[1]}


def _people(
    pair: Pair, features: Sequence[str], scale: Mapping[str, float], rng: random.Random
) -> list[tuple[tuple[float, ...] | None, str]]:
    if pair.weights:
        weights = tuple(float(pair.weights.get(name, 0.0)) for name in features)
        single = len(pair.weights) == 1
        return [(weights, next(iter(pair.weights)) if single else "mixtures")]
    if not pair.margins or (pair.preference and not any(pair.margins.values())):
        return [(None, WORDS if pair.preference else "learned")]
    margins = {name: margin / scale[name] for name, margin in pair.margins.items() if margin}
    people: list[tuple[tuple[float, ...] | None, str]] = [
        (tuple(_sign(margins[name]) if name == feature else 0.0 for feature in features), name) for name in margins
    ]
    if len(margins) > 1:
        drawn = {name: rng.gauss(0.0, 1.0) for name in margins}
        length = sum(weight * weight for weight in drawn.values()) ** 0.5
        side = _sign(sum(drawn[name] * margins[name] for name in margins))
        people.append((tuple(side * drawn.get(feature, 0.0) / length for feature in features), "mixtures"))
    return people


def _sign(value: float) -> float:
    return 1.0 if value > 0 else -1.0


def _margin_scale(pairs: Sequence[Pair]) -> dict[str, float]:
    squares: dict[str, list[float]] = {}
    for pair in pairs:
        for name, margin in pair.margins.items():
            squares.setdefault(name, []).append(margin * margin)
    return {name: (sum(values) / len(values)) ** 0.5 or 1.0 for name, values in squares.items()}


def make_batch(examples: Sequence[Example], *, plain: bool = False) -> TrainingBatch:
    """Make a batch, with the base's prompts if `plain`, else with the PersRM's."""
    parts = [(e.plain if plain else e.prompt, e.chosen, e.rejected) for e in examples]
    width = max(sum(map(len, part)) for part in parts)
    ids = torch.zeros(len(parts), width, dtype=torch.long)
    positions = torch.zeros(len(parts), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(parts), 1, 1)
    rows: list[int] = []
    sources: list[int] = []
    signs: list[float] = []
    imitated: list[bool] = []
    for row, (prompt, chosen, rejected) in enumerate(parts):
        begin, middle = len(prompt), len(prompt) + len(chosen)
        end = middle + len(rejected)
        ids[row, :end] = torch.tensor([*prompt, *chosen, *rejected])
        positions[row, :end] = torch.tensor([*range(middle), *range(begin, begin + len(rejected))])
        sees[row, :end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
        sees[row, middle:end, begin:middle] = False
        rows += [row] * (end - begin)
        sources += [*range(begin - 1, middle - 1), begin - 1, *range(middle, end - 1)]
        signs += [1.0] * len(chosen) + [-1.0] * len(rejected)
        imitated += [examples[row].imitated[0]] * len(chosen) + [examples[row].imitated[1]] * len(rejected)
    targets = torch.tensor([token for _, chosen, rejected in parts for token in (*chosen, *rejected)])
    return TrainingBatch(
        ids,
        positions,
        sees,
        rows=torch.tensor(rows),
        sources=torch.tensor(sources),
        targets=targets,
        signs=torch.tensor(signs),
        imitated=torch.tensor(imitated),
    )
