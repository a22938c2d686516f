from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.text.stopping import StopStrings

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


# -- special tokens: written in a stop string, never shown -----------------------------------------------------------

SPECIAL = ("<|end|>", "<|x|>")
Piece = tuple[str, bool]  # text, and whether it is a special token's


def run_with_special(stop: list[str], pieces: list[Piece]) -> tuple[str, bool]:
    strings = StopStrings(stop, SPECIAL)
    shown, stopped = "", False
    for text, is_special in pieces:
        safe, stopped = strings.push("", special=text) if is_special else strings.push(text)
        shown += safe
        if stopped:
            break
    return shown + strings.flush(), stopped


def search_with_special(stop: list[str], pieces: list[Piece]) -> tuple[str, bool]:
    """Every beginning of the written text in turn, each view by itself."""
    written = "".join(text for text, _ in pieces)
    is_shown = [not is_special for text, is_special in pieces for _ in text]
    places = [place for place, shown in enumerate(is_shown) if shown]
    view = "".join(written[place] for place in places)
    ends = []
    for string in stop:
        if any(token in string for token in SPECIAL):
            if string in written:
                start = written.index(string)
                ends.append((start + len(string), start))
        elif string in view:
            start = view.index(string)
            ends.append((places[start + len(string) - 1] + 1, places[start]))
    end = min(ends)[1] if ends else len(written)
    return "".join(character for character, shown in zip(written[:end], is_shown, strict=False) if shown), bool(ends)


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["<|end|>"], [("Hi", False), ("<|end|>", True), ("system", False)], "Hi"),
        (["done<|end|>"], [("I am do", False), ("ne", False), ("<|end|>", True), ("user", False)], "I am "),
        (["<|end|>\nuser"], [("Hi", False), ("<|end|>", True), ("\nus", False), ("er", False)], "Hi"),
        (["<|x|><|end|>"], [("a", False), ("<|x|>", True), ("<|end|>", True)], "a"),
        (["END"], [("the EN", False), ("<|x|>", True), ("D", False)], "the "),  # as the reader would see it
    ],
)
def test_a_stop_string_with_a_special_token(stop: list[str], pieces: list[Piece], shown: str) -> None:
    assert run_with_special(stop, pieces) == (shown, True)


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["done<|end|>"], [("do", False), ("ne", False), ("<|x|>", True), ("!", False)], "done!"),
        (["done<|end|>"], [("done", False)], "done"),
        (["<|end|>now"], [("a", False), ("<|end|>", True), ("no", False)], "ano"),
        (["<"], [("a", False), ("<|end|>", True), ("b", False)], "ab"),  # a part of a token is not shown
    ],
)
def test_what_a_stop_string_with_a_special_token_lets_through(stop: list[str], pieces: list[Piece], shown: str) -> None:
    assert run_with_special(stop, pieces) == (shown, False)


alphabet = st.sampled_from(["a", "b", "ab", "<|end|>", "<|x|>"])


@settings(deadline=None)
@given(
    stop=st.lists(st.lists(alphabet, min_size=1, max_size=3).map("".join), max_size=3),
    pieces=st.lists(alphabet, max_size=12),
)
def test_any_mix_of_words_and_special_tokens_equals_a_search(stop: list[str], pieces: list[str]) -> None:
    marked = [(piece, piece in SPECIAL) for piece in pieces]
    assert run_with_special(stop, marked) == search_with_special(stop, marked)
