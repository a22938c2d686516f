"""Choosing preference pairs among scored replies: both sound, and one with clearly more of a feature."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pad_train.pairs.feature import Feature, PairSampling
from pad_train.pairs.pair import Message, Pair
from pad_train.pairs.scorer import Critic

SAME = "the scorer sees no difference"
_REPEATS = "repeats itself"
_SHORT = "too short"
_MIN_DISTINCT, _WINDOW = 0.6, 60  # least share of different words, in a window of so many words
_MAX_NEIGHBOURS = 4  # times that the same two words may follow each other in a window
_STUTTER = re.compile(r"(?<!\w)([^\W\d_]{2,})(?:\W+\1(?!\w)){2,}")  # a word three times in a row
ALONE = "no usual reply to hold it against"


@dataclass(frozen=True)
class MadeReply:
    """A reply, sampled or given, and the person that it was made for.

    Attributes:
        text: text of the reply.
        finished: whether the reply is complete; False for a reply that was cut.
        weights: feature weights of the person; empty for a usual reply, made for no one in particular.
    """

    text: str
    finished: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """All replies to one prompt; `messages` as in `Pair`."""

    messages: tuple[Message, ...]
    replies: tuple[MadeReply, ...]


def repeats_itself(reply: str) -> bool:
    """Whether a reply has too few different words for its length, or the same words again and again."""
    text = reply.lower()
    words = text.split()
    if _STUTTER.search(text):
        return True
    for at in range(max(1, len(words) - _WINDOW + 1)):
        window = words[at : at + _WINDOW]
        neighbours = Counter(itertools.pairwise(window))
        if len(set(window)) < _MIN_DISTINCT * len(window) or max(neighbours.values(), default=0) > _MAX_NEIGHBOURS:
            return True
    return False


def why_unsound(reply: str, veto: str, sampling: PairSampling) -> str:
    """Why nobody should want a reply; "" if somebody may.

    Args:
        veto: what the feature's veto says of it.
    """
    if len(reply.split()) < sampling.min_words:
        return _SHORT
    return _REPEATS if repeats_itself(reply) else veto


def why_no_pair(unsound: Iterable[str], gap: float, min_gap: float) -> str:
    """Why two replies whose scores differ by `gap` make no pair; "" if they make one.

    Args:
        unsound: `why_unsound` of both.
    """
    return next(filter(None, unsound), "" if gap > min_gap else SAME)


def choose_pairs(
    answers: Iterable[Answers], features: Sequence[Feature], critics: Mapping[str, Critic]
) -> Iterator[Pair | str]:
    """Pairs of the replies to each prompt, as the features' critics see them; in place of a dropped pair, the reason.

    If all replies to a prompt are usual ones, they give one pair for each feature with a scorer: the reply with most of
    the feature over the one with least. Otherwise there are the persons that replies were made for, and the opposite of
    each. A person's score of a reply is sum_i w_i s_i / d_i, with w of length 1, s_i the scorer's score, and d_i its
    standard deviation over all replies. Each person has pairs

    - best > usual: the best reply made for the person over the usual reply (the first that was made for no one);
    - usual > worst, only if the worst reply made for the person scored below the usual one;
    - best > bad, if the opposite person has a best reply, too. A bad reply repeats itself or is vetoed. The same one is
      rejected for both persons, so that training imitates it for neither.

    Replies that were made for a feature without a scorer are left out.
    """
    sampled = {feature.name: feature.sampling for feature in features if feature.sampling is not None}
    reviews = [_review(answer, sampled, critics) for answer in answers]
    units = {name: _deviation([review.scores[name] for review in reviews if name in review.scores]) for name in sampled}
    for review in reviews:
        for axis in review.axes:
            yield from _choose(review, axis, units, sampled)


Axis = Mapping[str, float]
"""Feature weights of a person and, negated, of the opposite one; of length 1, the first of them positive."""


@dataclass(frozen=True)
class _Review:
    """The replies to one prompt, and what the critics say.

    Attributes:
        axes: of the persons that the replies are for.
        scores: by feature, in the order of the replies.
        vetoes: as `scores`; the reasons.
    """

    answer: Answers
    axes: tuple[Axis, ...]
    scores: Mapping[str, Sequence[float]]
    vetoes: Mapping[str, Sequence[str]]


def _review(answer: Answers, sampled: Mapping[str, PairSampling], critics: Mapping[str, Critic]) -> _Review:
    replies = tuple(reply for reply in answer.replies if reply.weights.keys() <= sampled.keys())
    answer = replace(answer, replies=replies)
    made_for = [_axis(reply.weights) for reply in replies if any(reply.weights.values())]
    axes = list({tuple(axis.items()): axis for axis in made_for}.values()) or [{name: 1.0} for name in sampled]
    names = {name for axis in axes for name in axis} if replies else set()
    asked = [answer.messages[-1]["content"]] * len(replies), [reply.text for reply in replies]
    order = list(sampled)
    return _Review(
        answer,
        tuple(sorted(axes, key=lambda axis: [order.index(name) for name in axis])) if replies else (),
        {name: critics[name].scorer(*asked) for name in sampled if name in names},
        {name: critics[name].veto(*asked) for name in sampled if name in names},
    )


def _axis(weights: Mapping[str, float]) -> Axis:
    wanted = {name: weight for name, weight in sorted(weights.items()) if weight}
    length = math.copysign(math.hypot(*wanted.values()), next(iter(wanted.values())))
    return {name: round(weight / length, 6) for name, weight in wanted.items()}


def _deviation(scores: Iterable[Sequence[float]]) -> float:
    values = list(itertools.chain.from_iterable(scores))
    return (statistics.pstdev(values) if values else 0.0) or 1.0


def _choose(
    review: _Review, axis: Axis, units: Mapping[str, float], sampled: Mapping[str, PairSampling]
) -> Iterator[Pair | str]:
    score: dict[str, float] = {}
    unsound: dict[str, str] = {}
    for index, reply in enumerate(review.answer.replies):
        score[reply.text] = sum(weight * review.scores[name][index] / units[name] for name, weight in axis.items())
        reasons = (why_unsound(reply.text, review.vetoes[name][index], sampled[name]) for name in axis)
        unsound[reply.text] = next(filter(None, reasons), "")
    min_gap = sum(abs(weight) * sampled[name].min_gap / units[name] for name, weight in axis.items())

    def most(replies: Sequence[MadeReply], sign: float) -> MadeReply:
        return max(replies, key=lambda reply: sign * score[reply.text])

    def pair(chosen: MadeReply, rejected: MadeReply, sign: float) -> Pair | str:
        gap = sign * (score[chosen.text] - score[rejected.text])
        reason = why_no_pair((unsound[chosen.text], unsound[rejected.text]), gap, min_gap)
        return reason or as_pair(review.answer.messages, chosen, rejected, _times(axis, sign))

    usual = [reply for reply in review.answer.replies if not any(reply.weights.values())]
    made = {
        sign: [
            reply
            for reply in review.answer.replies
            if any(reply.weights.values()) and _axis(reply.weights) == axis and _side(reply, axis) == sign
        ]
        for sign in (1.0, -1.0)
    }
    made_for_either = [*made[1.0], *made[-1.0]]
    if not usual or len(usual) + len(made_for_either) == 1:
        yield ALONE
        return
    if not made_for_either:
        yield pair(most(usual, 1.0), most(usual, -1.0), 1.0)
        return
    best: dict[float, MadeReply] = {}
    for sign, own in made.items():
        sound = [reply for reply in own if not unsound[reply.text]]
        if sound:
            best[sign] = most(sound, sign)
            yield pair(best[sign], usual[0], sign)
            if not isinstance(miss := pair(usual[0], most(sound, -sign), sign), str):
                yield miss
        elif own:
            yield unsound[own[0].text]
    bad = [reply for reply in made_for_either if unsound[reply.text] not in ("", _SHORT)]
    if len(best) == 2 and bad:
        yield from (as_pair(review.answer.messages, best[sign], bad[0], _times(axis, sign)) for sign in best)


def _side(reply: MadeReply, axis: Axis) -> float:
    first = next(iter(axis))
    return math.copysign(1.0, reply.weights[first])


def _times(axis: Axis, sign: float) -> dict[str, float]:
    return {name: sign * weight for name, weight in axis.items()}


def as_pair(
    messages: tuple[Message, ...], chosen: MadeReply, rejected: MadeReply, weights: Mapping[str, float]
) -> Pair:
    """Two replies to one prompt as a pair of the person with these feature weights."""
    return Pair(
        messages=messages,
        chosen=chosen.text,
        rejected=rejected.text,
        weights=weights,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
    )
