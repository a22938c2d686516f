"""Which replies make a pair: both are sound, and one has enough more of a feature than the other."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pad_export.persrm.feature import Feature, Sampling
from pad_export.persrm.pair import Message, Pair
from pad_export.persrm.scorer import Scorer

SAME = "the scorer sees no difference"
_REPEATS = "repeats itself"
_MIN_DISTINCT, _WINDOW = 0.6, 60  # share of different words, among as many, below which a reply only repeats itself
_MAX_NEIGHBOURS = 3  # times that a reply of one window may use the same two words one after the other
_STUTTER = re.compile(r"(\S{2,})(?:\W+\1){2,}")  # a word three times in a row


@dataclass(frozen=True)
class MadeReply:
    """A reply, and whom it was made for.

    Attributes:
        text: of the reply.
        finished: whether it ends there, or was cut and would have gone on.
        weights: of the person that it was made for, by feature; none: for nobody.
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
    """Whether a reply uses too few words for its length, or the same ones again and again."""
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


def why_no_pair(chosen: str, rejected: str, gap: float, sampling: Sampling) -> str:
    """Why two replies make no pair, the score of the one being `gap` above the other's; "" if they do."""
    for reply in (chosen, rejected):
        if reason := _unsound(reply, sampling):
            return reason
    return "" if gap > sampling.min_gap else SAME


def choose_pairs(
    answers: Iterable[Answers], features: Sequence[Feature], scorers: Mapping[str, Scorer]
) -> Iterator[Pair | str]:
    """The pairs that replies are worth, for each feature that is scored; in the place of each that is dropped, why.

    Replies that were made for nobody alone give one pair, of the one with most and the one with least of the feature.
    Where some were made for who wants more of it or less, each of these two people has

    - the best of what was made for them above the usual reply, the first that was made for nobody;
    - the usual reply above the worst of it, where that missed the mark;
    - their best above one that repeats itself, whomever that was made for: both people do, and so nobody wants it.
    """
    for answer in answers:
        for feature in features:
            if feature.sampling is not None:
                yield from _choose(answer, feature.name, feature.sampling, scorers[feature.name])


def _choose(answer: Answers, name: str, sampling: Sampling, scorer: Scorer) -> Iterator[Pair | str]:
    made = [reply for reply in answer.replies if not reply.weights or list(reply.weights) == [name]]
    marks = scorer([answer.messages[-1]["content"]] * len(made), [reply.text for reply in made])
    score = dict(zip(map(id, made), marks, strict=True))

    def pair(chosen: MadeReply, rejected: MadeReply, sign: float) -> Pair | str:
        gap = sign * (score[id(chosen)] - score[id(rejected)])
        reason = why_no_pair(chosen.text, rejected.text, gap, sampling)
        return reason or _pair(answer, chosen, rejected, {name: sign})

    usual = [reply for reply in made if not reply.weights]
    if len(usual) == len(answer.replies) > 1:
        ranked = sorted(usual, key=lambda reply: score[id(reply)])
        yield pair(ranked[-1], ranked[0], 1.0)
        return
    best: dict[float, MadeReply] = {}
    for sign in (1.0, -1.0):
        own = [reply for reply in made if sign * reply.weights.get(name, 0.0) > 0]
        sound = sorted(
            (reply for reply in own if not _unsound(reply.text, sampling)), key=lambda reply: sign * score[id(reply)]
        )
        if not sound:
            if own:
                yield _unsound(own[0].text, sampling)
            continue
        best[sign] = sound[-1]
        if usual:
            yield pair(sound[-1], usual[0], sign)
            if not isinstance(miss := pair(usual[0], sound[0], sign), str):
                yield miss
    looped = [reply for reply in made if reply.weights and _unsound(reply.text, sampling) == _REPEATS]
    if len(best) == 2 and looped:
        one = looped[len(answer.messages[-1]["content"]) % len(looped)]  # any fixed choice would do
        yield from (_pair(answer, best[sign], one, {name: sign}) for sign in best)


def _unsound(reply: str, sampling: Sampling) -> str:
    if len(reply.split()) < sampling.min_words:
        return "too short"
    return _REPEATS if repeats_itself(reply) else ""


def _pair(answer: Answers, chosen: MadeReply, rejected: MadeReply, weights: Mapping[str, float]) -> Pair:
    return Pair(
        messages=answer.messages,
        chosen=chosen.text,
        rejected=rejected.text,
        weights=weights,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
    )
