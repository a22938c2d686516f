"""Hedged or sure: hedges and boosters of Hyland (2005), Metadiscourse, appendix, and quantifiers.

None of the words that the scorer of the training pairs counts (may, perhaps, always ...) is counted here. Left out are
words that are often meant otherwise (about, certain, feel, sure as in "make sure").
"""

from __future__ import annotations

from benchmarks.quality.judges.words import per_100_words, phrases

_LIKELIHOOD = phrases(
    """almost, apparent, apparently, approximately, broadly, fairly, generally, in general, largely, likely, maybe,
    mostly, nearly, occasionally, often, partly, plausible, plausibly, potentially, presumable, presumably,
    quite, rarely, relatively, reportedly, roughly, seemingly, seldom, somewhat, supposedly, typical, typically,
    unlikely"""
)
_QUANTIFIERS = phrases(
    """absolutely, all, completely, entirely, every, everybody, everyone, everything, everywhere, exactly, fully,
    guarantee, guaranteed, guarantees, inevitable, inevitably, no one, nobody, none, nothing, perfectly,
    precisely, purely, the only, totally, unquestionable, unquestionably, wholly, without exception, without fail"""
)
_HEDGES = phrases(
    """appear, appeared, appears, argue, argued, argues, are said to, are thought to, as far as, assume, assumed,
    assumes, certain amount, certain extent, depend, depending, depends, doubt, doubtful, estimate, estimated,
    estimates, guess, hard to know, hard to say, i believe, i think, if at all, in most cases, in my opinion, in
    my view, in part, in some cases, indicate, indicated, indicates, is said to, is thought to, it is believed, it
    is said, looks as if, looks like, more or less, not all, not easy to say, not every, not necessarily, not
    sure, on the whole, or so, ought, postulate, postulates, seem, seemed, seems, some extent, some people, some
    say, suggest, suggested, suggests, suppose, suspect, suspects, tend, tended, tends, to my knowledge,
    uncertain, unclear, unsure, varies, vary"""
)
_BOOSTERS = phrases(
    """actually, beyond doubt, conclusively, decidedly, demonstrate, demonstrated, demonstrates, doubtless, evident,
    evidently, for sure, in fact, incontrovertible, indeed, indisputable, indisputably, know, known, knows, no
    doubt, of course, prove, proved, proven, proves, realize, realizes, show, shown, shows, surely, the fact,
    true, truly, undeniable, undeniably, undisputedly, undoubtedly, without doubt"""
)


def likelihood(text: str) -> float:
    """Adverbs and adjectives of likelihood and frequency minus quantifiers without exception, per 100 words."""
    return per_100_words(_LIKELIHOOD, text) - per_100_words(_QUANTIFIERS, text)


def stance(text: str) -> float:
    """Hedging verbs and phrases minus boosters, per 100 words."""
    return per_100_words(_HEDGES, text) - per_100_words(_BOOSTERS, text)
