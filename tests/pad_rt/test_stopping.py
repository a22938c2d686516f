from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.stopping import StopStrings

words = st.text("ab\n", min_size=1, max_size=4)


def run(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    strings = StopStrings(stop)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped = strings.push(piece)
        shown += text
        if stopped:
            break
    return shown + strings.flush(), stopped


def search(stop: list[str], text: str) -> tuple[str, bool]:
    """The shortest beginning of the text that ends with a stop string, less the longest stop string it ends with."""
    for end in range(len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(deadline=None)
@given(stop=st.lists(words, max_size=4), pieces=st.lists(st.text("abc\n", max_size=5), max_size=12))
def test_any_split_equals_a_search_of_the_whole_text(stop: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert run(stop, pieces) == search(stop, text)
    assert run(stop, list(text)) == search(stop, text)


@settings(deadline=None)
@given(stop=st.lists(words, min_size=1, max_size=4), pieces=st.lists(st.text("abc\n", max_size=5), max_size=12))
def test_no_more_than_needed_is_held_back(stop: list[str], pieces: list[str]) -> None:
    strings = StopStrings(stop)
    text = shown = ""
    for piece in pieces:
        text += piece
        safe, stopped = strings.push(piece)
        shown += safe
        if stopped:
            return
        held = text[len(shown) :]
        assert text == shown + held
        assert not held or any(string.startswith(held) for string in stop)


def test_holds_back_then_gives_or_drops() -> None:
    strings = StopStrings(["User:"])
    assert strings.push("Hi Us") == ("Hi ", False)
    assert strings.push("ain.") == ("Usain.", False)
    assert strings.push("\nUse") == ("\n", False)
    assert strings.push("r: more") == ("", True)
    assert strings.push("and more") == ("", True)
    assert strings.flush() == ""


def test_end_of_text_gives_what_was_held() -> None:
    strings = StopStrings(["END"])
    assert strings.push("the EN") == ("the ", False)
    assert strings.flush() == "EN"
    assert strings.flush() == ""


@pytest.mark.parametrize(
    ("stop", "text", "shown"),
    [
        (["b", "ab"], "xab", "x"),  # same end: the longest
        (["abcd", "bc"], "abcd", "a"),  # the first to be complete
        (["aab"], "aaab", "a"),
        (["👩‍🍳"], "hi 👩‍🍳!", "hi "),
    ],
)
def test_which_stop_string_wins(stop: list[str], text: str, shown: str) -> None:
    assert run(stop, [text]) == run(stop, list(text)) == (shown, True)


def test_no_stop_strings_pass_everything() -> None:
    assert StopStrings([]).push("text") == ("text", False)
