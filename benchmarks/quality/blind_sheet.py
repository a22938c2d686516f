"""A blind sheet: pairs of replies for people to choose from, and what their choices say.

`python -m benchmarks.quality.blind_sheet write` makes build/blind/sheet to hand out (sheet.csv to fill in, and
sheet.html, which shows the same pairs and can save the filled sheet.csv) and build/blind/key.json to keep: it says
which reply is whose. `python -m benchmarks.quality.blind_sheet read sheet-of-ann.csv sheet-of-ben.csv ...` tells how
often guided replies win, how often each judge is of the people's opinion, and how far people are of one opinion.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.records import RESULTS, ROOT, replace_text, write_record
from benchmarks.quality.traits import DIRECTIONS, reply_cap

NUM_PAIRS = 50
GUIDED, OTHERS = "pad", ("base", "prompted")
FIRST, SECOND, SAME = "1", "2", "same"
HAS_MORE, ANSWERS_BETTER = "has more of it", "answers better"  # the columns to fill in
COLUMNS = ("pair", "question", "asked for", "reply 1", "reply 2", HAS_MORE, ANSWERS_BETTER)
PAGE = Path(__file__).parent / "data" / "blind-sheet.html"
FOLDER = ROOT / "build" / "blind"


@dataclass(frozen=True)
class SheetPair:
    """Two replies to one question, in the order in which they are shown.

    Attributes:
        question: what was asked.
        feature: that the guided reply was asked to have more of, or less.
        weight: 1 for more, -1 for less.
        methods: whose each reply is; one of the two is guided.
        replies: the texts.
    """

    question: str
    feature: str
    weight: float
    methods: tuple[str, str]
    replies: tuple[str, str]

    @property
    def asked_for(self) -> str:
        return f"{DIRECTIONS[self.feature][self.weight < 0]} (and not {DIRECTIONS[self.feature][self.weight > 0]})"

    @property
    def guided(self) -> str:
        """The answer that names the guided reply."""
        return (FIRST, SECOND)[self.methods.index(GUIDED)]

    @property
    def other(self) -> str:
        """The method that the guided reply is held against."""
        return self.methods[self.guided == FIRST]


@dataclass(frozen=True)
class Opinion:
    """A person's answers to one pair: `FIRST`, `SECOND`, `SAME`, or "" for none."""

    has_more: str
    answers_better: str


def choose_pairs(record: Sequence[Mapping[str, Any]], *, number: int = NUM_PAIRS, seed: int = 0) -> list[SheetPair]:
    """Guided replies beside the base's and the prompted base's, every direction as often as any other, in random order.

    Args:
        record: quality_replies.json: of each question ("prompt") the base's replies by cap, and those of the other
            methods by direction.

    Raises:
        SystemExit: the record has fewer pairs of different replies.
    """
    draw = random.Random(seed)
    queues = [
        draw.sample(_pairs(record, feature, weight, other, draw), len(record))
        for feature, directions in DIRECTIONS.items()
        for weight, direction in zip((1.0, -1.0), directions, strict=True)
        if direction in record[0]["replies"]
        for other in OTHERS
    ]
    queues = [[pair for pair in queue if pair.replies[0].strip() != pair.replies[1].strip()] for queue in queues]
    draw.shuffle(queues)
    chosen: list[SheetPair] = []
    while len(chosen) < number and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    if len(chosen) < number:
        raise SystemExit(f"{number} pairs were asked for; the record has {len(chosen)}: ask for fewer with --pairs")
    return draw.sample(chosen[:number], number)


def _pairs(
    record: Sequence[Mapping[str, Any]], feature: str, weight: float, other: str, draw: random.Random
) -> list[SheetPair]:
    """One a question, either reply first as often as the other."""
    pairs = []
    for row in record:
        told = row["replies"][DIRECTIONS[feature][weight < 0]]
        texts = {"base": row["base"][f"{reply_cap(feature)} tokens"], **told}
        first, second = draw.sample((GUIDED, other), 2)
        pairs.append(SheetPair(row["prompt"], feature, weight, (first, second), (texts[first], texts[second])))
    return pairs


def write_sheet(pairs: Sequence[SheetPair], folder: Path) -> None:
    """sheet/sheet.csv and sheet/sheet.html to hand out, key.json to keep."""
    rows = [(str(number), pair.question, pair.asked_for, *pair.replies, "", "") for number, pair in enumerate(pairs, 1)]
    sheet = folder / "sheet"
    sheet.mkdir(parents=True, exist_ok=True)
    with (sheet / "sheet.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    page = PAGE.read_text(encoding="utf-8")
    replace_text(sheet / "sheet.html", page.replace("<!-- pairs -->", "\n".join(map(_card, rows))))
    write_record(folder / "key.json", [asdict(pair) for pair in pairs])


def _card(row: Sequence[str]) -> str:
    """A pair as a section of the page; its answers are radio buttons."""
    number, question, asked_for, first, second = map(html.escape, row[:5])
    buttons = "".join(
        f"<p>{label}: "
        + " ".join(
            f'<label><input type="radio" name="{name}-{number}" value="{answer}"> {shown}</label>'
            for answer, shown in ((FIRST, "reply 1"), (SECOND, "reply 2"), (SAME, "no difference"))
        )
        + "</p>"
        for name, label in (("more", f"Which is more {asked_for}?"), ("better", "Which answers the question better?"))
    )
    replies = f"<div><b>1</b><pre>{first}</pre></div><div><b>2</b><pre>{second}</pre></div>"
    return f'<section><h2>{number}. {question}</h2><div class="replies">{replies}</div>{buttons}</section>'


def read_key(path: Path) -> list[SheetPair]:
    """The pairs of a sheet, in its order.

    Raises:
        SystemExit: there is no such file.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing; expected the key that was written beside the sheet; give it with --key")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [SheetPair(**{**row, "methods": tuple(row["methods"]), "replies": tuple(row["replies"])}) for row in rows]


def read_sheet(path: Path, number: int) -> list[Opinion]:
    """A person's opinions, in the order of the pairs.

    Raises:
        SystemExit: the file is missing, pairs are, or an answer is none of those that are asked for.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing; expected a filled sheet.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = {row.get("pair") or "": row for row in csv.DictReader(file)}
    opinions = []
    for pair in map(str, range(1, number + 1)):
        if pair not in rows:
            raise SystemExit(f"{path} has no pair {pair}; expected pairs 1 to {number}; was it made with this key?")
        given = [(rows[pair].get(column) or "").strip().lower() for column in (HAS_MORE, ANSWERS_BETTER)]
        for answer in given:
            if answer not in (FIRST, SECOND, SAME, ""):
                raise SystemExit(f"{path}, pair {pair}: {answer!r}; expected 1, 2, same or nothing; mend the cell")
        opinions.append(Opinion(*given))
    return opinions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="a sheet and its key")
    write.add_argument("--pairs", type=int, default=NUM_PAIRS)
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--replies", type=Path, default=RESULTS / "quality_replies.json")
    write.add_argument("--folder", type=Path, default=FOLDER)
    read = commands.add_parser("read", help="the tables of filled sheets")
    read.add_argument("sheets", type=Path, nargs="+")
    read.add_argument("--key", type=Path, default=FOLDER / "key.json")
    arguments = parser.parse_args()
    if arguments.command == "write":
        record = json.loads(arguments.replies.read_text(encoding="utf-8"))
        write_sheet(choose_pairs(record, number=arguments.pairs, seed=arguments.seed), arguments.folder)
        print(f"{arguments.folder / 'sheet'} to hand out, {arguments.folder / 'key.json'} to keep")
    else:
        from benchmarks.quality.judges import load_judges
        from benchmarks.quality.opinions import tables

        pairs = read_key(arguments.key)
        print(tables(pairs, [read_sheet(path, len(pairs)) for path in arguments.sheets], load_judges()))


if __name__ == "__main__":
    main()
