from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pad_runtime.errors import DataError, OptionError, PadError
from pad_train.pairs.own_layout import pair_to_record
from pad_train.pairs.pair import Pair
from pad_train.pairs.pair_file import PairSource, parse_source, read_pairs
from pad_train.pairs.pair_report import PairReport
from tests.support.error_checks import check_line, refused

GOOD = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "How are you?"},
]


def write_rows(path: Path, *rows: Any) -> Path:
    """One line a row; bytes are written as they are, anything else as JSON."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read_one(path: Path, feature: str | None = None) -> tuple[list[Pair], PairReport]:
    pairs, (report,) = read_pairs([PairSource(path, feature)])
    assert report.num_pairs == len(pairs)
    return pairs, report


def test_a_row_with_everything(tmp_path: Path) -> None:
    row = GOOD | {
        "prompt": CHAT,
        "preference": "cheerful",
        "weights": {"cheerful": 1, "concise": -0.5},
        "scores": {"cheerful": [3, 1], "concise": [0.25, 0.5], "helpful": [2, 2]},
        "chosen_finished": False,
        "rejected_finished": True,
    }
    assert read_one(write_rows(tmp_path / "p.jsonl", row))[0] == [
        Pair(
            messages=tuple(CHAT),
            chosen="Hello!",
            rejected="No.",
            preference="cheerful",
            weights={"cheerful": 1.0, "concise": -0.5},
            margins={"cheerful": 2.0, "concise": -0.25, "helpful": 0.0},
            chosen_finished=False,
        )
    ]


def test_a_row_with_the_least(tmp_path: Path) -> None:
    nulls = dict.fromkeys(["preference", "weights", "scores", "chosen_finished", "rejected_finished"])
    pairs, report = read_one(write_rows(tmp_path / "p.jsonl", GOOD, GOOD | nulls))
    assert pairs == [Pair(({"role": "user", "content": "Say hello."},), "Hello!", "No.")] * 2
    assert report.lines() == [f"{tmp_path / 'p.jsonl'}: 2 pairs of 2 rows"]


def test_swapped_replies_swap_the_sign(tmp_path: Path) -> None:
    row = GOOD | {"scores": {"helpful": [2, 0.5]}}
    swapped = row | {"chosen": row["rejected"], "rejected": row["chosen"], "scores": {"helpful": [0.5, 2]}}
    (pair, other), _ = read_one(write_rows(tmp_path / "p.jsonl", row, swapped))
    assert pair.margins == {"helpful": 1.5}
    assert other.margins == {"helpful": -1.5}
    assert (other.chosen, other.rejected) == (pair.rejected, pair.chosen)


def test_a_named_feature_speaks_only_where_the_row_is_silent(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"preference": "kind"}, GOOD | {"weights": {"kind": 2}}, GOOD | {"scores": {"kind": [0, 1]}}]
    pairs, _ = read_one(write_rows(tmp_path / "p.jsonl", *rows), feature="harmless")
    assert [pair.weights for pair in pairs] == [{"harmless": 1.0}, {}, {"kind": 2.0}, {}]


text = st.text(min_size=1, max_size=8).filter(str.strip)
number = st.floats(allow_nan=False, allow_infinity=False).filter(bool)
by_feature = st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,4}", fullmatch=True), number, max_size=3)
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=5)})


@given(
    st.lists(turn, max_size=3),
    text,
    text,
    text,
    st.none() | text,
    by_feature,
    by_feature,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[dict[str, str]],
    prompt: str,
    chosen: str,
    rejected: str,
    preference: str | None,
    weights: dict[str, float],
    margins: dict[str, float],
    chosen_finished: bool,
    rejected_finished: bool,
    ascii_only: bool,
) -> None:
    messages = (*before, {"role": "user", "content": prompt})
    pair = Pair(
        messages, chosen, f"{rejected}, not {chosen}", preference, weights, margins, chosen_finished, rejected_finished
    )
    line = json.dumps(pair_to_record(pair), ensure_ascii=ascii_only) + "\n"
    path = tmp_path_factory.mktemp("pairs") / "p.jsonl"
    path.write_text(line * 2, encoding="utf-8")
    pairs, report = read_one(path)
    assert pairs == [pair] * 2
    assert list(pairs[0].weights) == list(weights)
    assert list(pairs[0].margins) == list(margins)
    assert not report.skipped


def test_line_separators_within_text_are_no_line_ends(tmp_path: Path) -> None:
    row = GOOD | {"chosen": "one\u2028two\u0085three\x0bfour\r\nfive \U0001f600"}
    line = json.dumps(row, ensure_ascii=False).encode()
    path = write_rows(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + line + b"\r", b"", b"  ", line)
    pairs, report = read_one(path)
    assert [pair.chosen for pair in pairs] == [row["chosen"]] * 2
    assert report.num_records == 2


PROBLEMS: dict[str, tuple[Any, str]] = {
    "empty reply": (GOOD | {"chosen": ""}, "an empty reply"),
    "blank reply": (GOOD | {"rejected": " \n\t"}, "an empty reply"),
    "one-sided": ({"prompt": "x", "chosen": "a"}, "no rejected"),
    "one-sided, null": (GOOD | {"chosen": None}, "no chosen"),
    "reply not text": (GOOD | {"chosen": 3}, "chosen that is not text"),
    "reply in messages": (GOOD | {"rejected": [{"role": "assistant", "content": "x"}]}, "rejected that is not text"),
    "equal": (GOOD | {"chosen": "No."}, "chosen = rejected"),
    "equal but for blanks": (GOOD | {"chosen": " No.\n"}, "chosen = rejected"),
    "not JSON": (b'{"prompt": "x", ', "text that is not JSON"),
    "deep": (b"[" * 100_000, "text that is not JSON"),
    "long number": (b'{"prompt": ' + b"9" * 5000 + b"}", "text that is not JSON"),
    "not an object": (["x"], "JSON that is not an object"),
    "not UTF-8": (b'{"prompt": "\xff"}', "bytes that are not UTF-8"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt"),
    "empty prompt": (GOOD | {"prompt": " "}, "an empty prompt"),
    "no messages": (GOOD | {"prompt": []}, "an empty prompt"),
    "blank last turn": (GOOD | {"prompt": [{"role": "user", "content": " "}]}, "an empty prompt"),
    "prompt not text": (GOOD | {"prompt": 5}, "a prompt that is neither text nor messages"),
    "assistant last": (GOOD | {"prompt": CHAT[:3]}, "a last turn that is not the user's"),
    "message not an object": (GOOD | {"prompt": ["x"]}, "a message that is not"),
    "unknown role": (GOOD | {"prompt": [{"role": "human", "content": "x"}]}, "a message that is not"),
    "message key": (GOOD | {"prompt": [{"role": "user", "content": "x", "name": "y"}]}, "a message that is not"),
    "content not text": (GOOD | {"prompt": [{"role": "user", "content": ["x"]}]}, "a message that is not"),
    "weights not numbers": (GOOD | {"weights": {"kind": "1"}}, "weights that are not finite numbers"),
    "weights true": (GOOD | {"weights": {"kind": True}}, "weights that are not finite numbers"),
    "weights not finite": (GOOD | {"weights": {"kind": float("nan")}}, "weights that are not finite numbers"),
    "weights too large": (GOOD | {"weights": {"kind": 10**400}}, "weights that are not finite numbers"),
    "weights a list": (GOOD | {"weights": [1]}, "weights that are not finite numbers"),
    "weights zero": (GOOD | {"weights": {"kind": 0, "dry": 0.0}}, "weights that are all zero"),
    "scores of one": (GOOD | {"scores": {"kind": [1]}}, "scores that are not two finite numbers"),
    "scores not finite": (GOOD | {"scores": {"kind": [1, float("inf")]}}, "scores that are not two finite numbers"),
    "scores too far apart": (GOOD | {"scores": {"kind": [1e308, -1e308]}}, "scores that are not two finite numbers"),
    "scores a number": (GOOD | {"scores": 1}, "scores that are not two finite numbers"),
    "scores equal": (GOOD | {"scores": {"kind": [2, 2]}}, "scores that are all equal"),
    "preference blank": (GOOD | {"preference": " "}, "a preference that is empty or not text"),
    "preference not text": (GOOD | {"preference": 1}, "a preference that is empty or not text"),
    "finished not a flag": (GOOD | {"chosen_finished": 1}, "chosen_finished that is neither true nor false"),
    "unknown key": (GOOD | {"wieghts": {"kind": 1}}, "the unknown key 'wieghts'"),
    "feature not a name": (GOOD | {"weights": {"very kind": 1}}, "the feature 'very kind', which is not a name"),
    "lone surrogate": (GOOD | {"chosen": "\ud800"}, "text that UTF-8 cannot carry"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_row_problem_is_counted_with_its_first_line(tmp_path: Path, name: str) -> None:
    row, reason = PROBLEMS[name]
    pairs, report = read_one(write_rows(tmp_path / "p.jsonl", GOOD, b"", row, GOOD, row))
    assert len(pairs) == 2
    assert report.num_records == 4
    ((given, count),) = report.skipped.items()
    assert given.startswith(reason)
    assert count == (2, 3)
    (line,) = report.lines()
    assert line == f"{tmp_path / 'p.jsonl'}: 2 pairs of 4 rows; skipped 2 with {given} (first at line 3)"


# Without a prompt, a row is one of hh-rlhf's, and what comes first decides.
@pytest.mark.parametrize("name", sorted(PROBLEMS.keys() - {"no prompt"}))
def test_first_row_may_be_the_bad_one(tmp_path: Path, name: str) -> None:
    row, reason = PROBLEMS[name]
    pairs, report = read_one(write_rows(tmp_path / "p.jsonl", row, GOOD))
    assert len(pairs) == 1
    ((given, count),) = report.skipped.items()
    assert given.startswith(reason)
    assert count == (1, 1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_file_of_nothing_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PadError) as caught:
        read_one(write_rows(tmp_path / "p.jsonl", PROBLEMS[name][0]))
    assert type(caught.value) is DataError
    assert str(tmp_path / "p.jsonl") in caught.value.given
    check_line(caught.value)


def test_report_counts_in_words() -> None:
    report = PairReport(Path("pairs.jsonl"), num_records=1160, num_pairs=1154)
    for line, reason in [(17, "chosen = rejected"), (90, "an empty reply"), (18, "chosen = rejected")]:
        report.skip(line, reason)
    report.skip(1100, "an empty reply")
    assert report.lines() == [
        "pairs.jsonl: 1,154 pairs of 1,160 rows; skipped 2 with chosen = rejected (first at line 17), "
        "2 with an empty reply (first at line 90)"
    ]


def test_report_of_many_reasons_stays_short(tmp_path: Path) -> None:
    rows = [GOOD | {f"key{index}" * 50: 1} for index in range(200)]
    with refused(DataError, given="192 for other reasons", expected="at least one pair"):
        read_one(write_rows(tmp_path / "p.jsonl", *rows))


def test_sources_keep_their_order(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "1.jsonl", GOOD | {"chosen": "a"}, GOOD | {"chosen": "b"})
    second = write_rows(tmp_path / "2.jsonl", GOOD | {"chosen": "c"})
    pairs, reports = read_pairs([PairSource(second, "kind"), PairSource(first)])
    assert [(pair.chosen, pair.weights) for pair in pairs] == [("c", {"kind": 1.0}), ("a", {}), ("b", {})]
    assert [(report.path, report.num_pairs) for report in reports] == [(second, 1), (first, 2)]


def test_parse_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("pairs.jsonl") == PairSource(Path("pairs.jsonl"), None)
    assert parse_source("harmless=hh.jsonl") == PairSource(Path("hh.jsonl"), "harmless")
    assert parse_source("a=b=c.jsonl") == PairSource(Path("b=c.jsonl"), "a")
    assert parse_source("runs/lr=3/p.jsonl") == PairSource(Path("runs/lr=3/p.jsonl"), None)
    (tmp_path / "harmless=hh.jsonl").touch()
    assert parse_source("harmless=hh.jsonl") == PairSource(Path("harmless=hh.jsonl"), None)
    assert parse_source("kind=" + "x" * 5000).feature == "kind"


@pytest.mark.parametrize("argument", ["", " ", "=", "=p.jsonl", "kind=", "kind= "])
def test_parse_source_refuses(argument: str) -> None:
    with refused(OptionError, given=f"--data {argument!r}", expected="NAME=PATH", hint="harmless=pairs.jsonl"):
        parse_source(argument)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with refused(DataError, given="none.jsonl does not exist", expected="pos.txt and neg.txt"):
        read_one(tmp_path / "none.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.parquet").touch()
    with refused(DataError, given="folder holds 'train.parquet'", expected="pos.txt and neg.txt"):
        read_one(tmp_path / "folder")
    with refused(DataError, given="empty.jsonl is empty", expected="JSON object a line"):
        read_one(write_rows(tmp_path / "empty.jsonl", b"", b" "))
    with refused(DataError, given="keys 'question', 'answer\\n'", expected="prompt, chosen and rejected"):
        read_one(write_rows(tmp_path / "qa.jsonl", {"question": "x", "answer\n": "y"}))
    with refused(DataError, given="0 pairs of 2 rows; skipped 2 with text that is not JSON", expected="JSON Lines"):
        read_one(write_rows(tmp_path / "text.txt", b"hello", b"world"))
    with refused(DataError, given="12 more"):
        read_one(write_rows(tmp_path / "wide.jsonl", {f"key {index}": 1 for index in range(20)}))
    with refused(DataError, given="cannot be read", hint="check the path"):
        read_one(tmp_path / ("x" * 1000))


def test_a_typo_does_not_make_another_layout_of_it(tmp_path: Path) -> None:
    with refused(DataError, given="the unknown key 'prefrence' (first at line 1)", expected="at least one pair"):
        read_one(write_rows(tmp_path / "p.jsonl", GOOD | {"prefrence": "kind"}))
    with refused(DataError, given="the unknown key 'source' (first at line 1)"):
        read_one(write_rows(tmp_path / "p.jsonl", GOOD | {"weights": {"kind": 1}, "source": "me"}))


def test_rows_are_plain() -> None:
    pair = Pair(({"role": "user", "content": "x"},), "a", "b", margins={"kind": -0.1})
    assert pair_to_record(pair) == {"prompt": "x", "chosen": "a", "rejected": "b", "scores": {"kind": [-0.1, 0.0]}}
    system = Pair(({"role": "system", "content": "s"}, {"role": "user", "content": "x"}), "a", "b")
    assert pair_to_record(system)["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
