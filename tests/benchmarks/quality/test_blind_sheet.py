from __future__ import annotations

import csv
import html
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import blind_sheet
from benchmarks.quality.blind_sheet import COLUMNS, Opinion, SheetPair, choose_pairs, read_key, read_sheet, write_sheet
from benchmarks.quality.judges import Judge
from benchmarks.quality.judges.judge import of_plain
from benchmarks.quality.opinions import guided_wins, krippendorff_alpha, same_opinion, tables

METHODS = ("prompted", "pad", "random")


def record(
    *, questions: int = 20, directions: tuple[str, ...] = ("cheerful", "critical", "lists")
) -> list[dict[str, Any]]:
    """As quality_replies.json is; every reply says whose it is."""
    return [
        {
            "prompt": f"Question {index}?",
            "base": {f"{cap} tokens": f"base {cap} to {index}" for cap in (64, 96)},
            "replies": {name: {method: f"{method} {name} to {index}" for method in METHODS} for name in directions},
        }
        for index in range(questions)
    ]


def length_judge(feature: str = "cheerful") -> Judge:
    return Judge(f"long words of {feature}", feature, of_plain(lambda text: float(len(text))))


def pair(
    replies: tuple[str, str], *, weight: float = 1.0, feature: str = "cheerful", guided: int = 0, other: str = "base"
) -> SheetPair:
    methods = ("pad", other) if guided == 0 else (other, "pad")
    return SheetPair("?", feature, weight, methods, replies)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fill(folder: Path, answer: Callable[[int, str], str]) -> Path:
    """A filled sheet, its answers by number of the pair and column."""
    rows = read_rows(folder / "sheet" / "sheet.csv")
    for row in rows:
        for column in COLUMNS[-2:]:
            row[column] = answer(int(row["pair"]), column)
    path = folder / "filled.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


# -- writing ----------------------------------------------------------------------------------------------------------


def test_pairs_are_of_every_direction_and_opponent_and_in_either_order() -> None:
    pairs = choose_pairs(record(), number=48)
    by_kind = Counter((each.feature, each.weight, each.other) for each in pairs)
    assert set(by_kind.values()) == {8}
    assert len(by_kind) == 6
    assert 12 <= sum(each.guided == "1" for each in pairs) <= 36
    assert len(set(pairs)) == 48
    assert choose_pairs(record(), number=48) == pairs
    assert choose_pairs(record(), number=48, seed=1) != pairs
    for each in pairs:
        for method, reply in zip(each.methods, each.replies, strict=True):
            assert reply.startswith(method)
            assert reply.endswith(each.question.removeprefix("Question").removesuffix("?"))
    assert {
        reply.split()[1] for each in pairs for reply in each.replies if each.feature == "lists" and "base" in reply
    } == {"96"}


def test_replies_that_are_the_same_are_no_pair() -> None:
    rows = record()
    for row in rows:
        row["replies"]["cheerful"]["pad"] = row["replies"]["cheerful"]["prompted"]
    assert ("cheerful", 1.0, "prompted") not in {(each.feature, each.weight, each.other) for each in choose_pairs(rows)}


def test_a_record_with_too_few_replies_is_refused() -> None:
    with pytest.raises(SystemExit, match="50 pairs were asked for; the record has 12"):
        choose_pairs(record(questions=2))


def test_what_is_handed_out_does_not_say_whose_a_reply_is(tmp_path: Path) -> None:
    rows = record()
    for row in rows:
        row["base"] = {cap: f"text {index}" for index, cap in enumerate(row["base"])}
        row["replies"] = {
            name: {method: f"words {index}" for index, method in enumerate(METHODS)} for name in row["replies"]
        }
    write_sheet(choose_pairs(rows), tmp_path)
    for path in (tmp_path / "sheet").iterdir():
        assert not re.search(r"\b(pad|base|prompted|weight|guided)\b", path.read_text(encoding="utf-8")), path
    assert "prompted" in (tmp_path / "key.json").read_text()  # control
    assert {path.name for path in (tmp_path / "sheet").iterdir()} == {"sheet.csv", "sheet.html"}


def test_sheet_page_and_key_hold_the_same_pairs(tmp_path: Path) -> None:
    odd = '<script>alert("1")</script> & \u201cquotes\u201d,\n- a list, with\n- commas'
    pairs = [pair((odd, f"other {index}"), guided=index % 2) for index in range(5)]
    write_sheet(pairs, tmp_path)
    assert read_key(tmp_path / "key.json") == pairs
    rows = read_rows(tmp_path / "sheet" / "sheet.csv")
    assert [(row["reply 1"], row["reply 2"]) for row in rows] == [each.replies for each in pairs]
    assert [row["asked for"] for row in rows] == ["cheerful (and not critical)"] * 5
    page = (tmp_path / "sheet" / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 5
    assert page.count('type="radio"') == 5 * 2 * 3
    assert html.escape(odd) in page
    assert odd not in page
    assert not re.search(r"(src|href)=|@import|url\(", page)  # nothing is loaded


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_filled_sheet_is_read(tmp_path: Path) -> None:
    write_sheet(choose_pairs(record(), number=4), tmp_path)
    given = {1: "1", 2: " Same ", 3: "", 4: "2"}
    path = fill(tmp_path, lambda number, column: given[number] if column == COLUMNS[-2] else "1")
    assert read_sheet(path, 4) == [Opinion("1", "1"), Opinion("same", "1"), Opinion("", "1"), Opinion("2", "1")]
    reduced = tmp_path / "reduced.csv"  # as the page saves it
    reduced.write_text("\ufeffpair,has more of it,answers better\r\n2,same,1\r\n1,1,2\r\n", encoding="utf-8")
    assert read_sheet(reduced, 2) == [Opinion("1", "2"), Opinion("same", "1")]


def test_the_page_saves_the_columns_that_are_read() -> None:
    assert f'"pair,{COLUMNS[-2]},{COLUMNS[-1]}"' in blind_sheet.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,has more of it,answers better\n1,both,1\n", "pair 1: 'both'; expected 1, 2, same or nothing"),
        ("pair,has more of it,answers better\n2,1,1\n", "has no pair 1; expected pairs 1 to 1"),
        ("", "has no pair 1"),
    ],
)
def test_a_wrong_sheet_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message) as error:
        read_sheet(path, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="is missing"):
        read_sheet(tmp_path / "none.csv", 1)
    with pytest.raises(SystemExit, match="is missing"):
        read_key(tmp_path / "none.json")


# -- opinions ---------------------------------------------------------------------------------------------------------


def test_wins_are_of_the_guided_reply_wherever_it_stands() -> None:
    pairs = [pair(("a", "b")), pair(("a", "b"), guided=1), pair(("a", "b"), other="prompted"), pair(("a", "b"))]
    answers = [["1", "1", "same"], ["1", ""], ["2"], ["", ""]]
    assert guided_wins(pairs, answers, "base") == pytest.approx([2.5 / 3, 0.0])
    assert guided_wins(pairs, answers, "prompted") == [0.0]


def test_a_judge_agrees_with_people_who_prefer_what_it_prefers() -> None:
    pairs = [
        pair(("long reply", "short")),
        pair(("long reply", "short"), weight=-1.0),
        pair(("same", "size")),
        pair(("", "any"), weight=-1.0),  # an empty reply loses, whatever is wanted
        pair(("long reply", "short"), feature="simple"),
        pair(("long reply", "short")),
    ]
    answers = [["1", "1", "2", "same"], ["2"], ["1", "1"], ["2"], ["1"], ["same", ""]]
    assert same_opinion(length_judge(), pairs, answers) == pytest.approx([2 / 3, 1, 0.5, 1])
    assert same_opinion(length_judge("warm"), pairs, answers) == []


def test_alpha_is_krippendorffs() -> None:
    """The example of "Computing Krippendorff's Alpha-Reliability" (2011), section C: nominal, four observers, gaps."""
    observers = ["123321412...", "12332241 25.3".replace(" ", ""), ".3332342251.", "1233244 1251.".replace(" ", "")]
    units = [["" if answer == "." else answer for answer in unit] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_people_who_agree_and_of_people_who_guess() -> None:
    draw = random.Random(0)
    assert krippendorff_alpha([["1", "1", "1"], ["2", "2", ""]]) == 1
    guesses = [[draw.choice("12") for _ in range(3)] for _ in range(2000)]
    assert abs(krippendorff_alpha(guesses)) < 0.05
    assert krippendorff_alpha([["1", "2"]] * 10) < 0
    assert math.isnan(krippendorff_alpha([["1"], [""]]))
    assert math.isnan(krippendorff_alpha([["1", "1"]]))


def test_sheets_of_three_people_end_as_tables(tmp_path: Path) -> None:
    pairs = choose_pairs(record(), number=48)
    write_sheet(pairs, tmp_path)
    draw = random.Random(0)

    def careful(number: int, column: str) -> str:
        return pairs[number - 1].guided

    def careless(number: int, column: str) -> str:
        return draw.choice("12")

    sheets = [read_sheet(fill(tmp_path, person), 48) for person in (careful, careful, careless)]
    shown = tables(pairs, sheets, [length_judge()])
    assert "| guided has more of what was asked for than base | 24 | " in shown
    rate = int(re.search(r"for than base \| 24 \| (\d+)%", shown)[1])  # type: ignore[index]
    assert 75 <= rate <= 92  # (1 + 1 + 1/2) / 3 = 83 %
    assert "| long words of cheerful (cheerful) says as people do | 32 |" in shown
    alpha = float(re.search(r"answers better: .*?\| (-?\d\.\d\d) \|", shown)[1])  # type: ignore[index]
    assert 0.1 < alpha < 0.6


def test_the_command_writes_and_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps(record()))
    monkeypatch.setattr("sys.argv", ["blind_sheet", "write", "--replies", str(replies), "--folder", str(tmp_path)])
    blind_sheet.main()
    assert "to hand out" in capsys.readouterr().out
    path = fill(tmp_path, lambda *_: "1")
    monkeypatch.setattr("benchmarks.quality.judges.load_judges", lambda: [length_judge()])
    monkeypatch.setattr("sys.argv", ["blind_sheet", "read", str(path), "--key", str(tmp_path / "key.json")])
    blind_sheet.main()
    assert "long words of cheerful" in capsys.readouterr().out
