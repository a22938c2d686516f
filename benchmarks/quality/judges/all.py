"""All judges, two a feature."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.quality.judges import address, certainty, excitement, feeling, formality, layout, length, readability
from benchmarks.quality.judges.checks import describe, read_asked, read_contrasts, read_films, read_levels
from benchmarks.quality.judges.judge import Judge, of_plain, of_replies, of_sentences
from benchmarks.quality.judges.prototypes import DISTANT, EXCITED, SOBER, WARM, nearness


def load_judges() -> list[Judge]:
    """Two a feature, in the order of the features, each with what its check found."""
    judges = (
        Judge("VADER compound, mean of sentences", "cheerful", of_plain(feeling.vader)),
        Judge("Pattern polarity", "cheerful", of_plain(feeling.polarity)),
        Judge("minus Flesch-Kincaid grade", "simple", of_sentences(readability.minus_grade)),
        Judge("minus Dale-Chall score", "simple", of_sentences(readability.minus_dale_chall)),
        Judge("minus words", "concise", of_plain(length.minus_words), equal_words=False),
        Judge("MiniLM cosine of the first 16 words and the whole", "concise", length.said_at_once),
        Judge("second person per 100 words", "warm", of_plain(address.second_person)),
        Judge("MiniLM nearness to kind sentences", "warm", nearness(WARM, DISTANT)),
        Judge("minus markers of talk per 100 words", "formal", of_plain(formality.minus_talk)),
        Judge("Heylighen-Dewaele F-score", "formal", of_plain(formality.f_score)),
        Judge("adverbs of likelihood minus quantifiers per 100 words", "hedged", of_plain(certainty.likelihood)),
        Judge("hedging verbs minus boosters per 100 words", "hedged", of_plain(certainty.stance)),
        Judge("share of lines in lists", "lists", of_replies(layout.list_share)),
        Judge("line breaks per 100 words", "lists", of_replies(layout.line_breaks)),
        Judge("exclamation marks per 100 words", "enthusiastic", of_plain(excitement.exclamations)),
        Judge("MiniLM nearness to excited sentences", "enthusiastic", nearness(EXCITED, SOBER)),
    )
    sets = {
        "pairs written by hand": read_contrasts(),
        "pairs of replies to the wish and to its opposite": read_asked(),
        "pairs of film sentences": read_films(),
        "news sentences in two levels": read_levels(),
    }
    return [replace(judge, check=describe(judge, sets)) for judge in judges]
