"""Nearness to sentences of one kind and not of the other, by sentence embeddings; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.quality.embedding import shared_embedder
from benchmarks.quality.replies import JudgedReply

WARM = (
    "I am here for you, and I care about how you feel.",
    "You are doing so well, be kind to yourself.",
    "It is lovely to talk with you, my friend.",
    "I understand how hard this is for you, and I am by your side.",
    "Please take good care of yourself today.",
    "You can always come to me, I am happy to listen.",
)
DISTANT = (
    "The subject is described in the literature.",
    "The following data are recorded in the report.",
    "The item is classified as follows.",
    "Statistics are listed in the table.",
    "The process consists of several stages.",
    "The term denotes a category of objects.",
)
EXCITED = (
    "Wow, I can't believe how thrilling this is!",
    "Yes, yes, yes! Let's go!",
    "I'm so pumped, this is going to be epic!",
    "Hooray! What a thrill!",
    "Oh my goodness, look at that!",
)
SOBER = (
    "The results are listed below.",
    "This is a plain statement.",
    "The procedure is as follows.",
    "It consists of three parts.",
    "There is nothing unusual about it.",
)


def nearness(more: Sequence[str], less: Sequence[str]) -> Callable[[Sequence[JudgedReply]], list[float]]:
    """Mean cosine with sentences that have much of a feature, minus that with sentences that have little."""

    def score(replies: Sequence[JudgedReply]) -> list[float]:
        embed = shared_embedder()
        direction = embed(more).mean(0) - embed(less).mean(0)
        return [float(value) for value in embed([reply.plain for reply in replies]) @ direction]

    return score
