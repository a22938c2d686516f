"""Choosing preference pairs among scored replies: both sound, and one with clearly more of a feature."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pad_train.pairs.feature import Feature, PairSampling
from pad_train.pairs.pair import Message, Pair
from pad_train.pairs.scorer import Scorer

SAME = "the scorer sees no difference"
_REPEATS = "repeats itself"
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


def why_no_pair(chosen: str, rejected: str, gap: float, sampling: PairSampling) -> str:
    """Why two replies whose scores differ by `gap` make no pair; "" if they make one."""
    for reply in (chosen, rejected):
        if reason := _unsound(reply, sampling):
            return reason
    return "" if gap > sampling.min_gap else SAME


def choose_pairs(
    answers: Iterable[Answers], features: Sequence[Feature], scorers: Mapping[str, Scorer]
) -> Iterator[Pair | str]:
    """Pairs of the replies to each prompt, for each feature with a scorer; in place of a dropped pair, the reason.

    If all replies to a prompt are usual ones, they give one pair: the reply with most of the feature over the one with
    least. Otherwise there are two persons, one who wants more of the feature and one who wants less, and each has pairs

    - best > usual: the best reply made for the person over the usual reply (the first that was made for no one);
    - usual > worst, only if the worst reply made for the person scored below the usual one;
    - best > repetitive, if both persons have a best reply. The same repetitive reply is rejected for both, so that
      training imitates it for neither.

    Features for which none of a prompt's replies was made are left out, unless all its replies are usual ones.
    """
    for answer in answers:
        made_for = {name for reply in answer.replies for name in reply.weights}
        for feature in features:
            if feature.sampling is not None and (feature.name in made_for or not made_for):
                yield from _choose(answer, feature.name, feature.sampling, scorers[feature.name])


def _choose(answer: Answers, name: str, sampling: PairSampling, scorer: Scorer) -> Iterator[Pair | str]:
    made = [reply for reply in answer.replies if not reply.weights or list(reply.weights) == [name]]
    if not made:
        return
    marks = scorer([answer.messages[-1]["content"]] * len(made), [reply.text for reply in made])
    score = {reply.text: mark for reply, mark in zip(made, marks, strict=True)}

    def most(replies: Sequence[MadeReply], sign: float) -> MadeReply:
        return max(replies, key=lambda reply: sign * score[reply.text])

    def pair(chosen: MadeReply, rejected: MadeReply, sign: float) -> Pair | str:
        gap = sign * (score[chosen.text] - score[rejected.text])
        reason = why_no_pair(chosen.text, rejected.text, gap, sampling)
        return reason or as_pair(answer.messages, chosen, rejected, {name: sign})

    usual = [reply for reply in made if not reply.weights]
    if not usual or len(made) == 1:
        yield ALONE
        return
    if len(usual) == len(made):
        yield pair(most(made, 1.0), most(made, -1.0), 1.0)
        return
    best: dict[float, MadeReply] = {}
    for sign in (1.0, -1.0):
        own = [reply for reply in made if sign * reply.weights.get(name, 0.0) > 0]
        sound = [reply for reply in own if not _unsound(reply.text, sampling)]
        if sound:
            best[sign] = most(sound, sign)
            yield pair(best[sign], usual[0], sign)
            if not isinstance(miss := pair(usual[0], most(sound, -sign), sign), str):
                yield miss
        elif own:
            yield _unsound(own[0].text, sampling)
    looped = [reply for reply in made if reply.weights and _unsound(reply.text, sampling) == _REPEATS]
    if len(best) == 2 and looped:
        yield from (as_pair(answer.messages, best[sign], looped[0], {name: sign}) for sign in best)


def _unsound(reply: str, sampling: PairSampling) -> str:
    if len(reply.split()) < sampling.min_words:
        return "too short"
    return _REPEATS if repeats_itself(reply) else ""


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
