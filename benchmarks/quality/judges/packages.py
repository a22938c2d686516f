"""Packages of the judges that leave files open or warn when they are imported."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any


@cache
def textstat() -> Any:
    """Readability formulas; its word lists are read here, while warnings are silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from textstat import textstat as formulas

        formulas.dale_chall_readability_score("A sentence.")
    return formulas


@cache
def textblob() -> Any:
    """Pattern's English: `sentiment` and `tag`, whose lexica are read here, while warnings are silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from textblob import en

        en.sentiment("good")
        en.tag("good")
    return en
