"""Regular expressions from files, matched in a process of their own: only its end stops one that backtracks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10.0  # a sensible pattern takes a thousandth
_CHOICES = re.compile(r"[*+?{|]")  # a pattern without these cannot backtrack
_SCRIPT = (
    "import json, re, sys; patterns, names = json.load(sys.stdin); "
    "print(json.dumps([[bool(re.match(pattern, name)) for name in names] for pattern in patterns]))"
)


def match_all(patterns: Sequence[str], names: Sequence[str]) -> list[list[bool]]:
    """Whether each pattern matches the beginning of each name, as `re.match` does: [patterns][names].

    Raises:
        re.error, OverflowError, RecursionError: a pattern is no regular expression.
        TimeoutError: matching takes longer than `SECONDS`, or all memory.
    """
    compiled = [re.compile(pattern) for pattern in patterns]
    if not any(map(_CHOICES.search, patterns)):
        return [[bool(pattern.match(name)) for name in names] for pattern in compiled]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _SCRIPT],
            input=json.dumps([list(patterns), list(names)]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if done.returncode:
        raise TimeoutError
    matches: list[list[bool]] = json.loads(done.stdout)
    return matches
