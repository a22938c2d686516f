"""What was made lately and is asked for again."""

from __future__ import annotations

import pytest

from pad_runtime.adapters.recent import Recent


def test_as_many_as_are_kept_are_made_once() -> None:
    made: list[str] = []
    recent: Recent[str, str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abab"] == ["A", "B", "A", "B"]
    assert made == ["a", "b"]
    assert get("c") == "C"
    assert recent.values() == ["B", "C"], "the one that was used longest ago is gone"
    get("b")
    get("d")
    assert recent.values() == ["B", "D"], "to use it again counts"
    assert get("a") == "A"
    assert made == ["a", "b", "c", "d", "a"]
    recent.clear()
    assert recent.values() == []


def test_what_cannot_be_made_leaves_the_rest() -> None:
    recent: Recent[int, int] = Recent(1)
    recent.get(1, lambda: 10)

    def fail() -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        recent.get(2, fail)
    assert recent.values() == [10]
