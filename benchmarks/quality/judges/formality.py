"""Formal or casual: markers of talk, and the share of nouns and their company among the words."""

from __future__ import annotations

import re
from collections import Counter

from benchmarks.quality.judges.packages import textblob
from benchmarks.quality.judges.words import per_100_words, phrases, straight

_TALK = phrases(
    """actually, anyway, awesome, basically, big, bit, buddy, bunch, check out, come on, cool, crazy, dude, figure out,
    folks, get, gets, getting, gonna, got, gotta, grab, guys, hello, hey, hi, huh, i, just, kid, kids, kinda, lol, lot,
    lots, mate, maybe, me, mine, my, myself, nice, no way, nope, oh, ok, okay, our, ours, ourselves, pretty, really,
    sorta, stuff, super, thing, things, totally, ugh, us, wanna, we, wow, yeah, yep, you know, yup"""
)
_MARKS = re.compile(
    r"\w'(?:re|ll|ve|d|m|t)\b|\b(?:he|here|how|it|let|she|that|there|what|where|who)'s\b|[!?]", re.IGNORECASE
)
_FULL_FORMS = {
    r"\bcan't\b": "can not",
    r"\bwon't\b": "will not",
    r"n't\b": " not",
    r"'re\b": " are",
    r"'ll\b": " will",
    r"'ve\b": " have",
    r"'m\b": " am",
    r"'d\b": " would",
    r"\b(he|here|how|it|let|she|that|there|what|where|who)'s\b": r"\1 is",
}
_NOMINAL, _VERBAL = ("NN", "JJ", "IN", "DT"), ("PRP", "WP", "VB", "MD", "RB", "UH")


def minus_talk(text: str) -> float:
    """Minus contractions, marks of exclamation and question, the first person and words of talk, per 100 words.

    Markers of involved language by Biber (1988), but for the second person, by which warmth is judged.
    """
    return -per_100_words(_TALK, text) - per_100_words(_MARKS, text)


def f_score(text: str) -> float:
    """Heylighen and Dewaele's formality (1999), 0 to 100, by the parts of speech of Pattern's tagger.

    F = (nouns + adjectives + prepositions + articles - pronouns - verbs - adverbs - interjections + 100) / 2, each in
    percent of the words. Its articles are all determiners here; the tagger reads contractions in full.
    """
    text = straight(text)
    for short, full in _FULL_FORMS.items():
        text = re.sub(short, full, text, flags=re.IGNORECASE)
    counts = Counter(tag for word, tag in textblob().tag(text) if re.search(r"\w", word))
    nominal, verbal = (
        sum(number for tag, number in counts.items() if tag.startswith(kinds)) for kinds in (_NOMINAL, _VERBAL)
    )
    return (100 * (nominal - verbal) / max(1, counts.total()) + 100) / 2
