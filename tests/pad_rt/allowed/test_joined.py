"""Several parts together: what all allow, and which gives way where they allow nothing together."""

from __future__ import annotations

import numpy as np

from pad_rt.allowed.bits import Bits, all_but
from pad_rt.allowed.joined import JoinedTokens
from pad_rt.allowed.no_repeat import NoRepeatNgram

VOCAB = 20


class Only:
    """Some tokens, and what was pushed; None: all tokens."""

    def __init__(self, ids: set[int] | None) -> None:
        self.ids, self.pushed = ids, list[int]()

    def packed(self) -> Bits | None:
        return None if self.ids is None else all_but([id for id in range(VOCAB) if id not in self.ids], VOCAB)

    def push(self, token_id: int) -> None:
        self.pushed.append(token_id)


def joined(*parts: set[int] | None) -> set[int] | None:
    bits = JoinedTokens([Only(part) for part in parts]).packed()
    return None if bits is None else set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())


def test_what_all_parts_allow() -> None:
    assert joined(None, None) is None
    assert joined({1, 2, 9}, None) == {1, 2, 9}
    assert joined({1, 2, 9}, {2, 9, 17}, {9, 2}) == {2, 9}


def test_the_less_binding_part_gives_way() -> None:
    assert joined({1, 2}, {3}) == {1, 2}
    assert joined({3}, {1, 2}) == {3}
    assert joined({1, 2}, {3}, {2, 3}) == {2}
    assert joined(set(), {3}) == {3}


def test_no_repeat_ngram_gives_way_where_every_token_was_there() -> None:
    allowed = JoinedTokens([NoRepeatNgram(1, list(range(VOCAB)), VOCAB + 2, VOCAB)])
    assert allowed.packed() is None
    nearly = JoinedTokens([NoRepeatNgram(1, list(range(1, VOCAB)), VOCAB + 2, VOCAB)])
    bits = nearly.packed()
    assert bits is not None
    assert np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() == [0]


def test_all_parts_learn_of_a_token() -> None:
    parts = [Only(None), Only({3})]
    allowed = JoinedTokens(parts)
    allowed.push(5)
    allowed.push(3)
    assert [part.pushed for part in parts] == [[5, 3], [5, 3]]
